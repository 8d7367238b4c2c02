// Curves over time as SVG: memory above, load below, phases of a run as bands behind both.
const GIB = 2 ** 30;
const PHASE_NAMES = { text: 'Text', encode: 'Encode', denoise: 'Denoise', decode: 'Decode' };
const ARM_NAMES = { dense: 'Dense', sparse: 'Sparse' };
const EDGE = { left: 46, right: 10, top: 34, plot: 150, gap: 16, load: 38, bottom: 20 };

function svgNode(name, attributes, text) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function stepOf(range, most, steps) {
  if (steps) return steps.find((step) => range / step <= most) || steps[steps.length - 1];
  const power = 10 ** Math.floor(Math.log10(range / most || 1));
  return [1, 2, 5, 10].map((n) => n * power).find((step) => range / step <= most) || 10 * power;
}

const TIME_STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400];

function duration(seconds, step = 1) {
  if (seconds < 0) return `−${duration(-seconds, step)}`;
  const size = seconds;
  if (size < 120) return `${seconds.toFixed(step < 1 ? 1 : 0)} s`;
  if (size < 7200) return size % 60 && step < 60 ? `${Math.trunc(seconds / 60)}:${String(Math.round(size % 60)).padStart(2, '0')} min` : `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

// Index of the last time <= t, or the first one.
function indexAt(times, t) {
  let low = 0;
  let high = times.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (times[middle] <= t) low = middle;
    else high = middle - 1;
  }
  return low;
}

function curve(times, values, x, y, floor) {
  let path = '';
  let start = null;
  let last = null;
  for (let i = 0; i < times.length; i += 1) {
    const value = values[i];
    if (value === null || value === undefined) {
      if (floor !== undefined && last !== null) path += `L${last} ${floor}L${start} ${floor}Z`;
      start = last = null;
      continue;
    }
    const at = x(times[i]).toFixed(1);
    path += `${last === null ? 'M' : 'L'}${at} ${y(value).toFixed(1)}`;
    if (start === null) start = at;
    last = at;
  }
  if (floor !== undefined && last !== null) path += `L${last} ${floor}L${start} ${floor}Z`;
  return path;
}

// view: { span: [start, end], zero: time that the axis counts from, times, lines: [{ kind, values }], top: bytes,
// load: [{ kind, values }], loadName, bands: [{ arm, phase, start, end }], busy: [[start, end]],
// peaks: [{ arm, kind, time, value, text }], cursor: time or null }
function drawChart(root, view) {
  const width = Math.max(260, root.clientWidth);
  const bottom = EDGE.top + EDGE.plot;
  const lane = bottom + EDGE.gap;
  const floor = lane + EDGE.load;
  const height = floor + EDGE.bottom;
  const [start, end] = view.span;
  const length = Math.max(1, end - start);
  const right = width - EDGE.right;
  const x = (t) => EDGE.left + ((Math.min(Math.max(t, start), end) - start) / length) * (right - EDGE.left);
  const step = stepOf(view.top / GIB, 5);
  const top = Math.max(step, Math.ceil(view.top / GIB / step) * step) * GIB;
  const y = (bytes) => bottom - (Math.min(bytes, top) / top) * EDGE.plot;
  const yLoad = (percent) => floor - (Math.min(percent, 100) / 100) * EDGE.load;
  const svg = svgNode('svg', { width, height, viewBox: `0 0 ${width} ${height}`, 'aria-hidden': 'true' });
  const add = (name, attributes, text) => svg.appendChild(svgNode(name, attributes, text));

  for (const [from, to] of view.busy) add('rect', { class: 'busy', x: x(from), y: EDGE.top, width: Math.max(1, x(to) - x(from)), height: floor - EDGE.top });
  const arms = [];
  for (const band of view.bands) {
    if (band.end < start || band.start > end) continue;
    const [from, to] = [x(band.start), x(band.end)];
    add('rect', { class: `band ${band.phase}`, 'data-arm': band.arm, x: from, y: EDGE.top, width: Math.max(1, to - from), height: floor - EDGE.top });
    const name = PHASE_NAMES[band.phase] || band.phase;
    if (to - from > 6.2 * name.length + 6) add('text', { class: 'phase', x: (from + to) / 2, y: EDGE.top - 5, 'text-anchor': 'middle' }, name);
    const last = arms[arms.length - 1];
    if (last && last.arm === band.arm && from - last.to < 2 && band.phase !== view.bands[0].phase) last.to = to;
    else arms.push({ arm: band.arm, from, to });
  }
  for (const { arm, from, to } of arms) {
    add('rect', { class: 'arm', 'data-arm': arm, x: from, y: 15, width: Math.max(2, to - from - 1), height: 3, rx: 1.5 });
    const name = ARM_NAMES[arm] || arm;
    if (to - from > 7 * name.length) add('text', { class: 'arm-name', 'data-arm': arm, x: from, y: 11 }, name);
  }
  for (let tick = 0; tick <= top / GIB + step / 1e6; tick += step) {
    add('line', { class: 'rule', x1: EDGE.left, x2: right, y1: y(tick * GIB), y2: y(tick * GIB) });
    const digits = step < 0.1 ? 2 : step < 1 ? 1 : 0;
    add('text', { class: 'tick', x: EDGE.left - 6, y: y(tick * GIB) + 4, 'text-anchor': 'end' }, tick.toFixed(digits));
  }
  add('text', { class: 'tick', x: 0, y: EDGE.top - 5 }, 'GiB');
  for (const percent of [0, 100]) {
    add('line', { class: 'rule', x1: EDGE.left, x2: right, y1: yLoad(percent), y2: yLoad(percent) });
    add('text', { class: 'tick', x: EDGE.left - 6, y: yLoad(percent) + 4, 'text-anchor': 'end' }, `${percent}%`);
  }
  add('text', { class: 'tick', x: EDGE.left, y: lane - 4 }, view.loadName);
  const every = stepOf(length, Math.max(2, Math.floor((right - EDGE.left) / 90)), TIME_STEPS);
  for (let t = Math.ceil((start - view.zero) / every) * every; t <= end - view.zero + 1e-6; t += every) {
    const at = x(view.zero + t);
    add('text', { class: 'tick', x: at, y: height - 5, 'text-anchor': at > right - 16 ? 'end' : at < EDGE.left + 16 ? 'start' : 'middle' }, duration(Math.abs(t) < 1e-6 ? 0 : t, every));
    add('line', { class: 'rule', x1: at, x2: at, y1: floor, y2: floor + 4 });
  }
  for (const line of view.load) {
    add('path', { class: `area ${line.kind}`, d: curve(view.times, line.values, x, yLoad, floor) });
    add('path', { class: `curve ${line.kind}`, d: curve(view.times, line.values, x, yLoad) });
  }
  for (const line of view.lines) {
    if (line.filled) add('path', { class: `area ${line.kind}`, d: curve(view.times, line.values, x, y, bottom) });
    add('path', { class: `curve ${line.kind}`, d: curve(view.times, line.values, x, y) });
  }
  const told = view.peaks.filter((peak) => peak.text).map((peak) => x(peak.time));
  for (const peak of view.peaks) {
    if (peak.time < start || peak.time > end) continue;
    const [at, level] = [x(peak.time), y(peak.value)];
    add('circle', { class: 'peak', 'data-arm': peak.arm, cx: at, cy: level, r: 4 });
    if (!peak.text || told.some((other) => other !== at && Math.abs(other - at) < 170)) continue; // the table has them all
    const side = at > (EDGE.left + right) / 2 ? -1 : 1;
    add('text', { class: 'peak-text', x: at + 8 * side, y: level < EDGE.top + 14 ? level + 16 : level - 7, 'text-anchor': side < 0 ? 'end' : 'start' }, peak.text);
  }
  const cursor = add('g', { class: 'cursor' });
  if (view.cursor !== null) {
    const at = x(view.cursor);
    cursor.append(svgNode('line', { x1: at, x2: at, y1: EDGE.top, y2: floor }));
    for (const line of view.lines) {
      const value = line.values[indexAt(view.times, view.cursor)];
      if (value !== null && value !== undefined) cursor.append(svgNode('circle', { class: line.kind, cx: at, cy: y(value), r: 3.5 }));
    }
  }
  root.replaceChildren(svg);
  return (clientX) => start + ((clientX - root.getBoundingClientRect().left - EDGE.left) / (right - EDGE.left)) * length;
}
