// Draw the charts of #charts with uPlot, in the colours of the page. Arrow keys move the cursor of a chart in focus.
const charts = JSON.parse(document.getElementById('charts').textContent);
const colours = ['#2f81f7', '#d9730d', '#2da44e', '#bf4ba6', '#8b949e', '#b8860b', '#6e5bd6', '#cf4446'];
const whole = [1, 2, 5].flatMap(n => Array.from({ length: 9 }, (_, power) => n * 10 ** power)).sort((a, b) => a - b);
const brief = value => value == null ? '–' : Number.isInteger(value) ? String(value)  // a step, whole
  : value && Math.abs(value) < 1e-3 ? (+value.toPrecision(3)).toExponential() : String(+value.toPrecision(4));

// The series' point nearest to the cursor: series have points at places of their own.
function nearest(plot, series, at) {
  const values = plot.data[series];
  for (let d = 0; d < values.length; d++)
    for (const i of [at - d, at + d]) if (values[i] != null) return i;
  return at;
}

function look(series, kind) {
  const stroke = colours[series.colour % colours.length], few = series.y.filter(v => v != null).length < 30;
  return {
    label: series.label, value: (plot, value) => brief(value), stroke, spanGaps: true, width: 2,
    ...{
      line: { points: { show: few, size: 5, fill: stroke } },
      bars: { width: 1, fill: stroke + '66', paths: uPlot.paths.bars({ size: [0.9, 40] }), points: { show: false } },
      points: { paths: () => null, points: { show: true, size: 10, fill: stroke } },
      mark: { paths: () => null, points: { show: true, size: 14, width: 2, fill: 'transparent' } },
    }[kind],
  };
}

function draw(figure, chart) {
  const style = getComputedStyle(document.documentElement);
  const [ink, line] = ['--quiet', '--line'].map(name => style.getPropertyValue(name).trim());
  const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
  const margin = span => chart.kind === 'bars' ? 0.7 : (span || 1) * (chart.kind === 'points' ? 0.08 : 0.02);
  figure.querySelector('.uplot')?.remove();
  const plot = new uPlot({
    width: figure.clientWidth, height: 240,
    scales: {
      x: { time: false, range: (plot, low, high) => [low - margin(high - low), high + margin(high - low)] },
      y: chart.kind === 'bars' ? { range: (plot, low, high) => [0, high * 1.05 || 1] } : {},
    },
    axes: [{
      ...axis, label: chart.x, labelSize: 20, ...(chart.at.every(Number.isInteger) ? { incrs: whole } : {}),
    }, { ...axis, size: 62, values: (plot, ticks) => ticks.map(brief) }],
    series: [
      { label: chart.x, value: (plot, value) => brief(value) },
      ...chart.series.map(series => look(series, series.mark ? 'mark' : chart.kind)),
    ],
    cursor: { dataIdx: (plot, series, at) => series && chart.kind !== 'points' ? nearest(plot, series, at) : at },
  }, [chart.at, ...chart.series.map(series => series.y)], figure);
  let at = -1;
  figure.onkeydown = event => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    at = Math.max(0, Math.min(chart.at.length - 1, at + step));
    plot.setCursor({ left: plot.valToPos(chart.at[at], 'x'), top: 0 });
  };
  return plot;
}

document.querySelectorAll('.chart').forEach((figure, i) => {
  let plot = draw(figure, charts[i]);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => { plot = draw(figure, charts[i]); });
  new ResizeObserver(() => {
    if (figure.clientWidth && figure.clientWidth !== plot.width) plot.setSize({ width: figure.clientWidth, height: 240 });
  }).observe(figure);
});
