// The throughput as an interactive chart: drag to zoom, double-click to reset. Without this file
// the chart drawn by the server stays.
(() => {
  "use strict";
  let chart = null;
  let etag = "";
  let colours = null;

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const number = new Intl.NumberFormat(undefined, { maximumFractionDigits: 1 });
  const width = (place) => {
    const { paddingLeft, paddingRight } = getComputedStyle(place);
    return Math.max(Math.floor(place.clientWidth - parseFloat(paddingLeft) - parseFloat(paddingRight)), 200);
  };
  const apart = matchMedia("(max-width: 860px)").matches ? 70 : 60;

  const time = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
  const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
  const ticksOf = (_chart, ticks, _axis, _space, step) =>
    ticks.map((at) => (step >= 86400 ? day : time).format(new Date(at * 1000)));

  // The legend shows the values under the mouse, or the newest ones if the mouse is elsewhere.
  const said = (words) => (drawn, _value, which, at) => {
    const value = drawn.data[which][at ?? drawn.data[0].length - 1];
    return value == null ? "–" : words(value);
  };
  const series = (label, token, filled) => ({
    label,
    stroke: colour(token),
    width: 1.5,
    fill: filled ? colour(token) + "22" : undefined,
    points: { show: false },
    value: said((value) => number.format(value)),
  });
  const axis = () => ({
    stroke: colour("--soft"),
    font: "12px " + getComputedStyle(document.body).fontFamily,
    grid: { stroke: colour("--line"), width: 1 },
    ticks: { show: false },
  });
  const draw = (place, data) => {
    chart?.destroy();
    chart = new uPlot(
      {
        width: width(place),
        height: 220,
        padding: [8, 20, 0, 0],
        cursor: { y: false, drag: { x: true, y: false } },
        legend: { live: true, markers: { width: 0, fill: (drawn, which) => (which ? drawn.series[which].stroke() : "") } },
        scales: { y: { range: (_chart, _low, high) => [0, Math.max(high * 1.1, 1)] } },
        axes: [
          { ...axis(), size: 34, space: apart, values: ticksOf },
          { ...axis(), size: 46, values: (_chart, ticks) => ticks.map((tick) => number.format(tick)) },
        ],
        series: [
          { label: translate("time"), value: said((at) => `${day.format(at * 1000)} ${time.format(at * 1000)}`) },
          series(translate("delivered"), "--accent", true),
          series(translate("received"), "--good", false),
          series(translate("failed"), "--busy", false),
          series(translate("dead"), "--bad", false),
        ],
      },
      data,
      place,
    );
    colours = document.documentElement.dataset.theme ?? "";
  };

  const refresh = async () => {
    const place = document.querySelector("[data-chart]");
    if (!place || document.hidden) return;
    const fresh = !chart || !place.contains(chart.root);
    const asked = { headers: etag && !fresh ? { "If-None-Match": etag, "HX-Request": "true" } : { "HX-Request": "true" } };
    let answer;
    try {
      answer = await fetch(place.dataset.chart, asked);
    } catch {
      return; // the next turn tries again
    }
    if (answer.status !== 200) return;
    etag = answer.headers.get("ETag") ?? "";
    const data = await answer.json();
    place.querySelector("svg")?.remove();
    if (fresh) draw(place, data);
    else chart.setData(data, chart.scales.x.min <= chart.data[0][0] && chart.scales.x.max >= chart.data[0].at(-1));
  };

  addEventListener("resize", () => chart?.setSize({ width: width(chart.root.parentElement), height: 220 }));
  const redraw = () => chart && draw(chart.root.parentElement, chart.data);
  new MutationObserver(() => colours !== (document.documentElement.dataset.theme ?? "") && redraw()).observe(
    document.documentElement,
    { attributeFilter: ["data-theme"] },
  );
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  // The page changes whenever the chart's data does, so this is the only time to refresh.
  document.body.addEventListener("htmx:afterSwap", refresh);
  refresh();
})();
