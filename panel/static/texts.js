// What the scripts say, in the language of the page: it carries their texts by the English, and none in English.
(() => {
  "use strict";
  const texts = JSON.parse(document.documentElement.dataset.texts ?? "{}");
  window.say = (text, values = {}) =>
    Object.entries(values).reduce((said, [name, value]) => said.replaceAll(`{${name}}`, value), texts[text] ?? text);
})();
