// Draws each figure in the page's own colours, again when those change, and for paper.
const plots = [...document.querySelectorAll(".plot")].map((place) => {
  const { data, layout } = JSON.parse(place.firstElementChild.textContent);
  place.replaceChildren();
  return { place, data, layout };
});

function draw() {
  const style = getComputedStyle(document.documentElement);
  const [ink, line] = ["--ink", "--line"].map((name) => style.getPropertyValue(name).trim());
  for (const { place, data, layout } of plots) {
    const axis = { gridcolor: line, linecolor: line, zerolinecolor: line };
    const coloured = {
      ...layout,
      font: { color: ink, family: "system-ui, sans-serif", size: 12 },
      xaxis: { ...layout.xaxis, ...axis, fixedrange: true },
      yaxis: { ...layout.yaxis, ...axis, fixedrange: true },
    };
    Plotly.react(place, data, coloured, { responsive: true, displayModeBar: false });
  }
}

draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
matchMedia("print").addEventListener("change", draw);
