// Comfort only: every page works without this file.
(() => {
  "use strict";
  const root = document.documentElement;

  const dark = () =>
    root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;

  document.querySelector("[data-theme-switch]")?.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    localStorage.setItem("theme", root.dataset.theme);
  });

  // Times in the reader's own zone, and how long ago they were; the exact UTC stays on hover.
  const format = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
  const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
  const dayAndClock = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", hour: "numeric", minute: "2-digit" });
  const isToday = (date) => date.toDateString() === new Date().toDateString();
  const duration = (seconds) => {
    for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
      if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
    }
    return `${Math.floor(seconds)} s`;
  };
  const tellTimes = () => {
    for (const time of document.querySelectorAll("time[data-ago]")) {
      const seconds = (Date.now() - new Date(time.dateTime)) / 1000;
      const words = duration(Math.abs(seconds));
      const text = time.dataset.ago === "bare" ? words : say(seconds >= 0 ? "{time} ago" : "in {time}", { time: words });
      if (time.textContent !== text) time.textContent = text;
    }
  };
  setInterval(tellTimes, 1000);

  // An id is copied by the button after it.
  const copy = async (text) => {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    const area = document.createElement("textarea"); // over plain HTTP there is no clipboard to ask
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  };
  const addCopyButtons = (root) => {
    for (const id of root.querySelectorAll("[data-copy]:not([data-copied])")) {
      const button = document.createElement("button");
      id.dataset.copied = "";
      button.type = "button";
      button.className = "copy";
      button.title = say("Copy");
      button.setAttribute("aria-label", say("Copy {text}", { text: id.textContent.trim() }));
      button.addEventListener("click", async () => {
        await copy(id.textContent.trim());
        button.classList.add("done");
        setTimeout(() => button.classList.remove("done"), 1200);
      });
      id.after(button);
    }
  };

  const dress = (root) => {
    for (const time of root.querySelectorAll("time[datetime]:not([data-ago])")) {
      const date = new Date(time.dateTime);
      const short = isToday(date) ? clock : dayAndClock;
      time.textContent = (time.hasAttribute("data-clock") ? short : format).format(date);
    }
    tellTimes();
    addCopyButtons(root);
  };
  dress(document);
  document.addEventListener("htmx:afterSwap", (event) => dress(event.detail.target));

  // Keys: / searches, ? helps, g and a letter go to a page.
  const help = document.querySelector("#help");
  const helpButton = document.querySelector("[data-help]");
  if (help && helpButton) {
    helpButton.hidden = false;
    helpButton.addEventListener("click", () => help.showModal());
  }
  let going = 0;
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") closeDrops();
    const typing = event.target.closest?.("input, textarea, select, [contenteditable]");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || help?.open) return;
    const search = document.querySelector("[data-search]");
    if (Date.now() < going) {
      going = 0;
      const page = document.querySelector(`.side a[data-key="${CSS.escape(event.key)}"]`);
      if (page) location.assign(page.href);
    } else if (event.key === "g") {
      going = Date.now() + 1500;
    } else if (event.key === "/" && search) {
      event.preventDefault();
      search.focus();
      search.select();
    } else if (event.key === "?" && help) {
      event.preventDefault();
      help.showModal();
    }
  });

  // One drop-down at a time; a click elsewhere closes it.
  const closeDrops = (except) => {
    for (const drop of document.querySelectorAll("details.drop[open], details.menu[open]")) {
      if (!drop.contains(except ?? null)) drop.open = false;
    }
  };
  document.addEventListener("click", (event) => closeDrops(event.target));

  // A form is sent once, however often its button is pressed.
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.method !== "post") return;
    if (form.dataset.sent) event.preventDefault();
    form.dataset.sent = "yes";
  });
  addEventListener("pageshow", () => {
    for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
  });

  // The mapping's rows without a round trip; the server does the same where this cannot.
  const mapping = document.querySelector("form[data-mapping]");
  mapping?.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    const rows = [...mapping.querySelectorAll("[data-row]:not([data-child])")];
    const row = button?.closest("[data-row]");
    if (button?.matches("[data-remove]") && (row.matches("[data-child]") || rows.length > 1)) {
      event.preventDefault();
      const gone = [row];
      for (let next = row.nextElementSibling; next?.matches(".why, [data-child]"); next = next.nextElementSibling) {
        if (row.matches("[data-child]") && next.matches("[data-child]")) break;
        gone.push(next);
      }
      for (const one of gone) one.remove();
      number();
    } else if (button?.matches("[data-add]") && rows.some((one) => !one.querySelector("[colspan]"))) {
      event.preventDefault();
      const row = rows.filter((one) => !one.querySelector("[colspan]")).pop().cloneNode(true);
      for (const input of row.querySelectorAll("input")) {
        if (input.type === "checkbox") input.checked = false;
        else input.value = "";
      }
      for (const select of row.querySelectorAll("select")) select.selectedIndex = 0;
      for (const cell of row.querySelectorAll(".wrong")) cell.classList.remove("wrong");
      row.removeAttribute("aria-describedby");
      mapping.querySelector("tbody").append(row);
      number();
      row.querySelector("select").focus();
    }
  });
  const number = () => {
    let top = -1;
    let child = -1;
    for (const row of mapping.querySelectorAll("[data-row]")) {
      const inner = row.matches("[data-child]");
      if (inner) child += 1;
      else [top, child] = [top + 1, -1];
      const place = inner ? `${top}_${child}` : `${top}`;
      row.id = `row-${place}`;
      for (const input of row.querySelectorAll("[name]")) {
        input.name = input.name.replace(/^[\d_]+\./, `${place}.`);
        if (input.name === "do") input.value = input.value.replace(/[\d_]+$/, place);
        const label = input.getAttribute("aria-label");
        if (label) {
          // In whatever language: the first number is the row's, the last that of a child row in it.
          let said = label.replace(/\d+/, top + 1);
          if (inner) said = said.replace(/\d+(?=\D*$)/, child + 1);
          input.setAttribute("aria-label", said);
        }
      }
    }
  };

  // What was just tried, or found wrong, comes into view.
  document.querySelector("#review, .why")?.scrollIntoView({ block: "nearest" });
})();
