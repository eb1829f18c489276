// A page that updates itself: every so often, not in a hidden tab, not under somebody's hands.
// The server answers 304 while nothing has changed, and then nothing is touched.
(() => {
  "use strict";
  const page = document.querySelector("#live");
  const actions = document.querySelector("#actions"); // of the page's head: they come anew with the content
  const parts = [actions, page];
  const all = (what) => parts.flatMap((part) => [...part.querySelectorAll(what)]);
  const holds = (element) => parts.some((part) => part.contains(element));
  const choice = document.querySelector("[data-live-choice]");
  if (!page || !choice) return;
  const select = choice.querySelector("select");
  const words = choice.querySelector("[data-live-words]");
  let timer = 0;

  const tell = (text, state) => {
    words.textContent = say(text);
    choice.dataset.state = state;
  };

  // Someone types, has something open, or marks text to copy it: it stays as it is until he is done.
  const inUse = () => {
    const at = document.activeElement;
    const marked = getSelection();
    return (
      all("details.drop[open]").length > 0 ||
      (holds(at) && at.matches("input, textarea, select")) ||
      (!marked.isCollapsed && holds(marked.anchorNode))
    );
  };
  const update = () => {
    if (document.hidden || inUse()) return;
    htmx.trigger(page, "live");
    document.dispatchEvent(new CustomEvent("live"));
  };
  const start = () => {
    clearInterval(timer);
    const seconds = Number(select.value);
    tell(seconds ? "Live" : "Not live", seconds ? "on" : "off");
    if (seconds) timer = setInterval(update, seconds * 1000);
  };

  // What was open stays open, and the focus stays on the same link or button: known by its words and its section.
  const name = (element) => {
    const said = element.querySelector("summary") ?? element;
    return `${element.parentElement.closest("[id]").id}: ${said.getAttribute("aria-label") ?? said.textContent.trim()}`;
  };
  let kept = null;
  page.addEventListener("htmx:configRequest", (event) => {
    event.detail.headers["If-None-Match"] = page.dataset.etag;
  });
  page.addEventListener("htmx:beforeSwap", (event) => {
    if (event.detail.xhr.status !== 200) return;
    if (inUse()) {
      event.detail.shouldSwap = false;
      return;
    }
    page.dataset.etag = event.detail.xhr.getResponseHeader("ETag");
    kept = {
      open: new Set(all("details[open]").map(name)),
      focus: holds(document.activeElement) ? name(document.activeElement) : "",
    };
  });
  page.addEventListener("htmx:afterSwap", () => {
    if (!kept) return;
    for (const details of all("details")) {
      if (kept.open.has(name(details))) details.open = true;
    }
    const again = kept.focus && all("a, button, summary").find((e) => name(e) === kept.focus);
    if (again) again.focus({ preventScroll: true });
    kept = null;
  });
  page.addEventListener("htmx:afterRequest", (event) => {
    const status = event.detail.xhr.status;
    if (status === 401) {
      clearInterval(timer);
      tell("Logged out: reload the page", "bad");
    } else if (status === 200 || status === 304) {
      tell(Number(select.value) ? "Live" : "Not live", Number(select.value) ? "on" : "off");
    } else {
      tell("No answer, trying again", "bad");
    }
  });

  const saved = localStorage.getItem("live");
  if ([...select.options].some((option) => option.value === saved)) select.value = saved;
  select.addEventListener("change", () => {
    localStorage.setItem("live", select.value);
    start();
    if (Number(select.value)) update();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && Number(select.value)) update();
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, textarea, select");
    if (event.key === "r" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) update();
  });
  choice.hidden = false;
  start();
})();
