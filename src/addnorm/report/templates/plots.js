// Draws each figure in the page's own colours, again when those change, and for paper.
const plots = [...document.querySelectorAll(".plot")].map((place) => {
  const plot = { place, ...JSON.parse(place.firstElementChild.textContent) };
  place.replaceChildren();
  place.style.height = `${plot.layout.height}px`;
  plot.controls = [...place.parentElement.querySelectorAll("input, select")];
  for (const control of plot.controls) {
    control.addEventListener("input", () => {
      if (control.dataset.values) control.nextElementSibling.textContent = control.dataset.values.split("|")[control.value];
      choose(plot);
      show(plot);
    });
  }
  choose(plot); // a browser may keep a control's position over a reload
  return plot;
});

// Sets each curve to the values of the controls' position; the last control is the fastest.
function choose({ data, frames, sizes, controls }) {
  if (!frames) return;
  const frame = controls.reduce((index, control, i) => index * sizes[i] + Number(control.value), 0);
  data.forEach((trace, i) => (trace.y = frames[i][frames[i].length > 1 ? frame : 0]));
}

function show({ place, data, layout }) {
  const style = getComputedStyle(document.documentElement);
  const [ink, line] = ["--ink", "--line"].map((name) => style.getPropertyValue(name).trim());
  const axis = { gridcolor: line, linecolor: line, zerolinecolor: line };
  const coloured = {
    ...layout,
    margin: { ...layout.margin, t: 8 + 20 * legendRows(place, data) },
    font: { color: ink, family: "system-ui, sans-serif", size: 12 },
    xaxis: { ...layout.xaxis, ...axis, fixedrange: true },
    yaxis: { ...layout.yaxis, ...axis, fixedrange: true },
  };
  Plotly.react(place, data.map((trace) => ({ ...trace })), coloured, { responsive: true, displayModeBar: false });
}

// How many lines the legend takes: plotly lays it out in columns as wide as its longest entry, and over the curves
// where there is no room for it.
function legendRows(place, data) {
  const widths = data.map((trace) => 44 + 7 * (trace.name ?? "").length);
  if (widths.length < 2) return 0;
  const room = place.clientWidth - 64;
  if (widths.reduce((sum, width) => sum + width, 0) <= room) return 1;
  return Math.ceil(widths.length / Math.max(1, Math.floor(room / Math.max(...widths))));
}

function draw() {
  plots.forEach(show);
}

draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
matchMedia("print").addEventListener("change", draw);
