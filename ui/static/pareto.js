// A plot of speed-up against likeness as SVG, redrawn at the size it has. Texts are set through textContent only.
// points: [{ x, y, name, dense, front }], y may be Infinity; labels: of the axes. useful: the largest y whose differences
// anybody sees; larger ones stand on a line of their own, so that they do not press the others together.
function paretoPlot(root, choose) {
  const NS = 'http://www.w3.org/2000/svg';
  const HEIGHT = 320;
  const MARGIN = { left: 58, right: 18, top: 30, bottom: 46 };
  let shown = null;

  const tip = document.createElement('div');
  tip.className = 'plot-tip';
  tip.hidden = true;

  function make(parent, name, attributes = {}, text) {
    const node = document.createElementNS(NS, name);
    Object.entries(attributes).forEach(([key, value]) => node.setAttribute(key, value));
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  }

  // Round numbers that span low to high in about `count` steps.
  function ticks(low, high, count) {
    const raw = (high - low) / count;
    const unit = 10 ** Math.floor(Math.log10(raw));
    const step = unit * [1, 2, 5, 10].find((factor) => factor * unit >= raw * 0.999);
    const first = Math.floor(low / step + 1e-9);
    const last = Math.ceil(high / step - 1e-9);
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    return Array.from({ length: last - first + 1 }, (_, i) => ({ at: (first + i) * step, text: ((first + i) * step).toFixed(digits) }));
  }

  function spread(values, least) {
    const low = Math.min(...values);
    const high = Math.max(...values);
    const pad = Math.max((high - low) * 0.08, least);
    return [low - pad, high + pad];
  }

  function draw() {
    root.replaceChildren(tip);
    tip.hidden = true;
    const width = root.clientWidth;
    if (!shown || !shown.points.length || width < 120) return;
    const { points, labels } = shown;
    const finite = points.filter((p) => p.y <= shown.useful);
    const beyond = points.some((p) => p.y > shown.useful && Number.isFinite(p.y));
    const xs = ticks(...spread(points.map((p) => p.x), 0.05), width < 480 ? 4 : 7);
    const yRange = finite.length ? spread(finite.map((p) => p.y), shown.least) : [0, 1];
    if (shown.most !== null) yRange[1] = Math.min(yRange[1], shown.most);
    const ys = ticks(...yRange, 5);
    const box = { left: MARGIN.left, right: width - MARGIN.right, top: MARGIN.top, bottom: HEIGHT - MARGIN.bottom };
    // copies without any difference have no finite PSNR; they stand on a line of their own above the scale
    const endless = points.some((p) => !Number.isFinite(p.y));
    const lane = box.top + (endless ? 26 : 0); // of those beyond what is useful
    const top = lane + (beyond ? 26 : 0);
    const scale = (value, from, to, low, high) => low + ((value - from) / (to - from)) * (high - low);
    const x = (value) => scale(value, xs[0].at, xs[xs.length - 1].at, box.left, box.right);
    const y = (value) => (value > shown.useful ? (Number.isFinite(value) ? lane : box.top) : scale(value, ys[0].at, ys[ys.length - 1].at, box.bottom, top));

    const svg = make(root, 'svg', { width, height: HEIGHT, role: 'group', 'aria-label': `${labels.y} over ${labels.x}` });
    for (const tick of ys) {
      make(svg, 'line', { class: 'rule', x1: box.left, x2: box.right, y1: y(tick.at), y2: y(tick.at) });
      make(svg, 'text', { class: 'tick', x: box.left - 8, y: y(tick.at) + 4, 'text-anchor': 'end' }, tick.text);
    }
    if (endless) {
      make(svg, 'line', { class: 'rule broken', x1: box.left, x2: box.right, y1: box.top, y2: box.top });
      make(svg, 'text', { class: 'tick', x: box.left - 8, y: box.top + 4, 'text-anchor': 'end' }, '∞');
    }
    if (beyond) {
      make(svg, 'line', { class: 'rule broken', x1: box.left, x2: box.right, y1: lane, y2: lane });
      make(svg, 'text', { class: 'tick beyond', x: box.left - 8, y: lane + 4, 'text-anchor': 'end' }, `> ${shown.useful}`);
    }
    for (const tick of xs) {
      make(svg, 'line', { class: 'rule', x1: x(tick.at), x2: x(tick.at), y1: box.bottom, y2: box.bottom + 5 });
      make(svg, 'text', { class: 'tick', x: x(tick.at), y: box.bottom + 20, 'text-anchor': 'middle' }, `${tick.text}×`);
    }
    make(svg, 'text', { class: 'axis', x: box.right, y: HEIGHT - 8, 'text-anchor': 'end' }, labels.x);
    make(svg, 'text', { class: 'axis', x: 4, y: 14 }, labels.y);

    const front = points.filter((p) => p.front).sort((a, b) => a.x - b.x);
    if (front.length > 1) {
      make(svg, 'polyline', { class: 'front', points: front.map((p) => `${x(p.x)},${y(p.y)}`).join(' ') });
    }
    const taken = [];
    const free = (area) => taken.every((t) => area.right < t.left || area.left > t.right || area.bottom < t.top || area.top > t.bottom);
    for (const p of [...points].sort((a, b) => Boolean(a.front) - Boolean(b.front))) {
      const at = { x: x(p.x), y: y(p.y) };
      const mark = make(svg, 'g', { class: 'point', tabindex: 0, role: p.open ? 'button' : 'img', 'aria-label': `${p.name}: ${p.text}` });
      mark.dataset.kind = p.dense ? 'dense' : p.front ? 'front' : 'behind';
      make(mark, 'circle', { class: 'reach', cx: at.x, cy: at.y, r: 16 });
      if (p.dense) make(mark, 'rect', { class: 'mark', x: at.x - 6, y: at.y - 6, width: 12, height: 12, rx: 2 });
      else make(mark, 'circle', { class: 'mark', cx: at.x, cy: at.y, r: 6 });
      taken.push({ left: at.x - 8, right: at.x + 8, top: at.y - 8, bottom: at.y + 8 });
      const show = () => {
        tip.replaceChildren();
        const name = document.createElement('b');
        name.textContent = p.name;
        tip.append(name, document.createTextNode(p.text));
        tip.hidden = false;
        tip.style.left = `${Math.min(Math.max(4, at.x - tip.offsetWidth / 2), width - tip.offsetWidth - 4)}px`;
        tip.style.top = `${at.y > 100 ? at.y - tip.offsetHeight - 14 : at.y + 16}px`;
      };
      const hide = () => (tip.hidden = true);
      mark.addEventListener('pointerenter', show);
      mark.addEventListener('pointerleave', hide);
      mark.addEventListener('focus', show);
      mark.addEventListener('blur', hide);
      if (p.open) {
        mark.addEventListener('click', () => choose(p.open));
        mark.addEventListener('keydown', (event) => {
          if (event.key !== 'Enter' && event.key !== ' ') return;
          event.preventDefault();
          choose(p.open);
        });
      }
    }
    // the front and the dense video are named where there is room
    for (const p of points.filter((p) => p.front || p.dense)) {
      const size = 6.4 * p.short.length;
      const right = x(p.x) + 10 + size < width;
      const left = right ? x(p.x) + 10 : x(p.x) - 10 - size;
      const area = { left, right: left + size, top: y(p.y) - 20, bottom: y(p.y) - 6 };
      if (left < box.left || !free(area)) continue;
      taken.push(area);
      make(svg, 'text', { class: 'name', x: left, y: y(p.y) - 9, 'aria-hidden': true }, p.short);
    }
  }

  new ResizeObserver(() => draw()).observe(root);
  return {
    set(content) {
      shown = content;
      draw();
    },
  };
}
