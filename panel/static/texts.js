// Translates the scripts' texts: the page carries the translations by the English text.
(() => {
  "use strict";
  const texts = JSON.parse(document.documentElement.dataset.texts ?? "{}");
  window.translate = (text, values = {}) =>
    Object.entries(values).reduce((said, [name, value]) => said.replaceAll(`{${name}}`, value), texts[text] ?? text);
})();
