// Updates the line about a running task on a page with a form, which is not updated as a whole.
// The line of a finished task has no data-line, which ends the updates.
(() => {
  "use strict";
  const update = async (line) => {
    const answer = await fetch(line.dataset.line, { headers: { "HX-Request": "true" } });
    if (!answer.ok) return;
    const html = await answer.text();
    // Replace it only if it changed: a screen reader announces every replacement.
    if (html !== line.last) {
      line.insertAdjacentHTML("afterend", html);
      line.nextElementSibling.last = html;
      line.remove();
    }
  };
  setInterval(() => {
    if (document.hidden) return;
    for (const line of document.querySelectorAll("[data-line]")) update(line).catch(() => {}); // it is asked again
  }, 2000);
})();
