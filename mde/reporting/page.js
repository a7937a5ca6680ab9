"use strict";
// Draws each chart from the JSON beside it, in the colours of the page, and again when the page turns dark or light.
const config = {
  responsive: true,
  displaylogo: false,
  displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "zoom2d", "pan2d", "autoScale2d"],
};

function template() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const size = innerWidth < 480 ? 11 : 13;
  const axis = {
    title: { font: { size }, standoff: 12 },
    gridcolor: colour("--grid"),
    linecolor: colour("--line"),
    tickcolor: colour("--line"),
  };
  const outline = { marker: { line: { color: colour("--paper"), width: 1 } } };
  return {
    data: { scatter: [outline] },
    layout: {
      font: { color: colour("--ink"), family: "system-ui, sans-serif", size },
      hoverlabel: { bgcolor: colour("--shade"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
      modebar: { color: colour("--faint"), activecolor: colour("--accent"), bgcolor: "rgba(0,0,0,0)" },
      xaxis: axis,
      yaxis: axis,
      ternary: { bgcolor: "rgba(0,0,0,0)", aaxis: axis, baxis: axis, caxis: axis },
    },
  };
}

function draw(chart) {
  const content = JSON.parse(chart.nextElementSibling.textContent);
  const choice = chart.parentElement.querySelector("select");
  const { data, layout } = choice ? content[choice.value] : content;
  Plotly.react(chart, data, { ...layout, template: template() }, config);
}

// A chart is drawn when it comes near the window, or is printed: the page opens without waiting for all of them.
const drawn = new Set();

function show(chart) {
  if (!drawn.has(chart)) {
    drawn.add(chart);
    draw(chart);
  }
}

const near = new IntersectionObserver(
  (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => show(entry.target)),
  { rootMargin: "800px" },
);
for (const chart of document.querySelectorAll(".chart")) {
  near.observe(chart);
  const choice = chart.parentElement.querySelector("select");
  if (choice) choice.addEventListener("change", () => draw(chart));
}
addEventListener("beforeprint", () => document.querySelectorAll(".chart").forEach(show));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach(draw));
