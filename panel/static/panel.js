// Conveniences: every page works without this file.
(() => {
  "use strict";
  const root = document.documentElement;

  const dark = () =>
    root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;

  document.querySelector("[data-theme-switch]")?.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    localStorage.setItem("theme", root.dataset.theme);
  });

  // Show times in the reader's time zone, and ages; hovering shows UTC.
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
  const updateTimes = () => {
    for (const time of document.querySelectorAll("time[data-ago]")) {
      const seconds = (Date.now() - new Date(time.dateTime)) / 1000;
      const words = duration(Math.abs(seconds));
      const text = time.dataset.ago === "bare" ? words : translate(seconds >= 0 ? "{time} ago" : "in {time}", { time: words });
      if (time.textContent !== text) time.textContent = text;
    }
  };
  setInterval(updateTimes, 1000);

  // A button after each id copies it.
  const copy = async (text) => {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    const area = document.createElement("textarea"); // without HTTPS there is no clipboard API
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
      button.title = translate("Copy");
      button.setAttribute("aria-label", translate("Copy {text}", { text: id.textContent.trim() }));
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
    updateTimes();
    addCopyButtons(root);
  };
  dress(document);
  document.addEventListener("htmx:afterSwap", (event) => dress(event.detail.target));

  // Keys: / searches, ? shows the help, g and a letter open a page.
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

  // Only one drop-down is open; a click elsewhere closes it.
  const closeDrops = (except) => {
    for (const drop of document.querySelectorAll("details.drop[open], details.menu[open]")) {
      if (!drop.contains(except ?? null)) drop.open = false;
    }
  };
  document.addEventListener("click", (event) => closeDrops(event.target));

  // Submit a form only once, even if its button is pressed again.
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.method !== "post") return;
    if (form.dataset.sent) event.preventDefault();
    form.dataset.sent = "yes";
  });
  addEventListener("pageshow", () => {
    for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
  });

  // Add and remove rows of a mapping without a request; the server can do the same.
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
          // In every language the first number is the row's, the last one the child row's.
          let said = label.replace(/\d+/, top + 1);
          if (inner) said = said.replace(/\d+(?=\D*$)/, child + 1);
          input.setAttribute("aria-label", said);
        }
      }
    }
  };

  // Scroll to the preview or the first error.
  document.querySelector("#review, .why")?.scrollIntoView({ block: "nearest" });
})();
