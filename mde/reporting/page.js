"use strict";
// Draws every chart from the JSON beside it, in the colours of the page, and again when the page turns dark or light.
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

function drawAll() {
  document.querySelectorAll(".chart").forEach(draw);
}

for (const choice of document.querySelectorAll(".choice select")) {
  choice.addEventListener("change", () => draw(choice.closest("figure").querySelector(".chart")));
}
drawAll();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
