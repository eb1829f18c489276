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

  // Times in the reader's own zone; the exact UTC stays on hover.
  const format = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
  for (const time of document.querySelectorAll("time[datetime]:not([data-keep])")) {
    time.textContent = format.format(new Date(time.dateTime));
  }

  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, textarea, select");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      const search = document.querySelector("[data-search]");
      if (search) {
        event.preventDefault();
        search.focus();
        search.select();
      }
    }
    if (event.key === "Escape") closeDrops();
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
    const rows = mapping.querySelectorAll("[data-row]");
    if (button?.matches("[data-remove]") && rows.length > 1) {
      event.preventDefault();
      button.closest("[data-row]").remove();
      number();
    } else if (button?.matches("[data-add]") && rows.length) {
      event.preventDefault();
      const row = rows[rows.length - 1].cloneNode(true);
      for (const input of row.querySelectorAll("input")) {
        if (input.type === "checkbox") input.checked = false;
        else input.value = "";
      }
      for (const select of row.querySelectorAll("select")) select.selectedIndex = 0;
      rows[rows.length - 1].after(row);
      number();
      row.querySelector("select").focus();
    }
  });
  const number = () => {
    mapping.querySelectorAll("[data-row]").forEach((row, index) => {
      for (const input of row.querySelectorAll("[name]")) {
        input.name = input.name.replace(/^\d+\./, `${index}.`);
        if (input.name === "do") input.value = `remove:${index}`;
        const label = input.getAttribute("aria-label");
        if (label) input.setAttribute("aria-label", label.replace(/([Rr]ow) \d+/, `$1 ${index + 1}`));
      }
    });
  };
})();
