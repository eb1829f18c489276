// The line about a task under way, on a page that is not updated as a whole because somebody edits there.
// Once the task has ended the line comes without data-line, and nothing is asked any more.
(() => {
  "use strict";
  const update = async (line) => {
    const answer = await fetch(line.dataset.line, { headers: { "HX-Request": "true" } });
    if (!answer.ok) return;
    const html = await answer.text();
    // Only what is new is put there: a screen reader says every change of it.
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
