// A heat map of values[layer][step] in a figure. picked(step, layer) on a click or an arrow key.
function heatGrid(figure, words, picked) {
  const plot = document.createElement('div');
  plot.className = 'plot';
  plot.innerHTML =
    '<span class="y-title"></span><span class="y-ends"><span></span><span></span></span><canvas></canvas>' +
    '<span class="x-ends"><span></span><span class="x-title"></span><span></span></span>';
  const canvas = plot.querySelector('canvas');
  const legend = document.createElement('p');
  legend.className = 'map-legend';
  legend.innerHTML = '<span></span><i class="ramp"></i><span></span><output aria-live="off"></output>';
  figure.append(plot, legend);
  plot.tabIndex = 0;
  plot.setAttribute('role', 'group');
  const readout = legend.querySelector('output');
  let values = [];
  let stored = { steps: [], layers: [] };
  let range = [0, 1];
  let place = { step: 0, layer: 0 };
  let under = null;

  const nearest = (list, number) => list.reduce((best, one) => (Math.abs(one - number) < Math.abs(best - number) ? one : best), list[0] ?? number);
  const percent = (value) => `${(100 * value).toFixed(1)}%`;

  function open(newValues, newStored, newRange) {
    [values, stored, range, under] = [newValues, newStored, newRange, null];
    const ends = [...plot.querySelectorAll('.y-ends span, .x-ends > span')];
    [ends[0].textContent, ends[1].textContent] = ['1', values.length];
    [ends[2].textContent, ends[4].textContent] = ['1', values[0].length];
    plot.querySelector('.y-title').textContent = words.layer;
    ends[3].textContent = words.step;
    const [low, high] = legend.querySelectorAll('span');
    [low.textContent, high.textContent] = range.map((end) => `${Math.round(100 * end)}%`);
    draw();
  }

  function draw() {
    const { context: c, width, height } = fitCanvas(canvas);
    if (!width || !values.length) return;
    const [w, h] = [width / values[0].length, height / values.length];
    c.clearRect(0, 0, width, height);
    const gap = Math.min(w, h) > 8 ? 1 : 0;
    const snap = (at) => Math.round(at * window.devicePixelRatio) / window.devicePixelRatio; // no seams between cells
    values.forEach((row, layer) =>
      row.forEach((value, step) => {
        if (value === null) return;
        c.fillStyle = rampCss(range[1] > range[0] ? (value - range[0]) / (range[1] - range[0]) : 1);
        const [x, y] = [snap(step * w), snap(layer * h)];
        c.fillRect(x, y, snap((step + 1) * w) - x - gap, snap((layer + 1) * h) - y - gap);
      }),
    );
    if (stored.steps.length * stored.layers.length < values.length * values[0].length) {
      c.fillStyle = 'rgb(255 255 255 / .9)';
      stored.layers.forEach((layer) =>
        stored.steps.forEach((step) => {
          const dot = Math.max(1, Math.min(w, h) / 6);
          c.beginPath();
          c.arc((step + 0.5) * w, (layer + 0.5) * h, dot, 0, 7);
          c.fill();
        }),
      );
    }
    const around = gap || 2; // small cells get a ring around them, so that their colour stays visible
    const outline = ({ step, layer }, colour, line) => {
      c.strokeStyle = colour;
      c.lineWidth = line;
      c.strokeRect(step * w - around, layer * h - around, w + 2 * around - gap, h + 2 * around - gap);
    };
    if (under) outline(under, '#fff', 1.5);
    outline(place, '#000', 5);
    outline(place, '#fff', 2.5);
    tell();
  }

  function tell() {
    const { step, layer } = under || place;
    const value = values[layer]?.[step];
    readout.textContent = value == null ? '' : words.cell(step + 1, layer + 1, percent(value));
    plot.setAttribute('aria-label', `${words.name}. ${readout.textContent}. ${words.keys}`);
  }

  function cellAt(event) {
    const box = canvas.getBoundingClientRect();
    const at = (offset, length, count) => Math.min(count - 1, Math.max(0, Math.floor((offset / length) * count)));
    return { step: at(event.clientX - box.left, box.width, values[0].length), layer: at(event.clientY - box.top, box.height, values.length) };
  }

  canvas.addEventListener('pointermove', (event) => {
    under = cellAt(event);
    draw();
  });
  canvas.addEventListener('pointerleave', () => {
    under = null;
    draw();
  });
  canvas.addEventListener('click', (event) => {
    const cell = cellAt(event);
    picked(nearest(stored.steps, cell.step), nearest(stored.layers, cell.layer));
  });
  plot.addEventListener('keydown', (event) => {
    const moves = { ArrowLeft: ['step', -1], ArrowRight: ['step', 1], ArrowUp: ['layer', -1], ArrowDown: ['layer', 1] };
    if (!moves[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const [axis, by] = moves[event.key];
    const list = stored[`${axis}s`];
    const next = { ...place, [axis]: list[Math.min(list.length - 1, Math.max(0, list.indexOf(place[axis]) + by))] ?? place[axis] };
    picked(next.step, next.layer);
  });
  new ResizeObserver(draw).observe(plot);

  return {
    open,
    mark(step, layer) {
      place = { step, layer };
      draw();
    },
  };
}
