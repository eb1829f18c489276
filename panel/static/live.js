// Updates a live page at an interval, but not in a hidden tab or while the user works in it.
// The server answers 304 while nothing has changed.
(() => {
  "use strict";
  const page = document.querySelector("#live");
  const actions = document.querySelector("#actions"); // in the page's head; replaced together with the content
  const parts = [actions, page];
  const all = (what) => parts.flatMap((part) => [...part.querySelectorAll(what)]);
  const holds = (element) => parts.some((part) => part.contains(element));
  const choice = document.querySelector("[data-live-choice]");
  if (!page || !choice) return;
  const select = choice.querySelector("select");
  const words = choice.querySelector("[data-live-words]");
  let timer = 0;

  const showState = (text, state) => {
    words.textContent = translate(text);
    choice.dataset.state = state;
  };

  // Do not update while the user types, has a menu open or selects text.
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
    showState(seconds ? "Live" : "Not live", seconds ? "on" : "off");
    if (seconds) timer = setInterval(update, seconds * 1000);
  };

  // Open details and the focus survive an update: elements are recognised by their text and section.
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
      showState("Logged out: reload the page", "bad");
    } else if (status === 200 || status === 304) {
      showState(Number(select.value) ? "Live" : "Not live", Number(select.value) ? "on" : "off");
    } else {
      showState("No response, retrying", "bad");
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
