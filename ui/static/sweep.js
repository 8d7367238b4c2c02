// The grid of a sweep. It is built once per sweep and filled as videos are done. Texts are set through textContent.
const root = element.querySelector('.sweep');
const find = (selector) => root.querySelector(selector);
const calm = matchMedia('(prefers-reduced-motion: reduce)').matches;
const METRICS = {
  psnr: { label: 'PSNR to dense [dB]', least: 0.5, most: null, useful: 50, text: (v) => (v === 'inf' ? '∞ dB' : `${v.toFixed(1)} dB`) },
  ssim: { label: 'SSIM to dense', least: 0.005, most: 1, useful: 1, text: (v) => v.toFixed(3) },
  recall: { label: 'Attention mass kept (recall)', least: 0.005, most: 1, useful: 1, text: (v) => v.toFixed(3) },
};
const NAMES = { psnr: 'PSNR', ssim: 'SSIM', recall: 'recall' };
const clips = syncedClips(root, calm);
const plot = paretoPlot(find('.sweep-chart'), open);
let view = {};
let metric = 'psnr';
let built = '';
let asked = { state: '', time: 0 }; // the last request for a new view

function open(place) {
  trigger('select', { ...place, job: view.job });
  const stage = document.querySelector('#stage');
  if (stage) stage.scrollIntoView({ behavior: calm ? 'auto' : 'smooth', block: 'start' });
}

function add(parent, name, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

function cellName(row, column) {
  const [rows, columns] = view.axes;
  const name = `${rows.label} ${rows.values[row]}`;
  return columns ? `${name}, ${columns.label} ${columns.values[column]}` : name;
}

function build() {
  built = view.job;
  find('.sweep-dense').replaceChildren();
  const table = find('.sweep-grid');
  table.replaceChildren();
  const [rows, columns] = view.axes;
  root.dataset.axes = view.axes.length;
  root.style.setProperty('--aspect', view.aspect);
  if (!columns) return buildRow(table, rows);
  const head = add(add(table, 'thead'), 'tr');
  const corner = add(head, 'th', 'corner', `${columns.label} →\n${rows.label} ↓`);
  corner.scope = 'col';
  columns.values.forEach((text) => {
    add(head, 'th', '', text).scope = 'col';
  });
  const body = add(table, 'tbody');
  rows.values.forEach((text, row) => {
    const line = add(body, 'tr');
    add(line, 'th', '', text).scope = 'row';
    columns.values.forEach((_, column) => tileFor(add(line, 'td'), row, column));
  });
}

// One setting alone runs from left to right, with its plot beside it.
function buildRow(table, axis) {
  const head = add(add(table, 'thead'), 'tr');
  const line = add(add(table, 'tbody'), 'tr');
  axis.values.forEach((text, row) => {
    add(head, 'th', '', `${axis.label} ${text}`).scope = 'col';
    tileFor(add(line, 'td'), row, 0);
  });
}

function tileFor(cell, row, column) {
  const tile = add(cell, 'button', 'clip');
  tile.type = 'button';
  tile.dataset.place = `${row} ${column}`;
  tile.dataset.state = 'waiting';
  tile.disabled = true;
  frame(tile, cellName(row, column));
  tile.addEventListener('click', () => open({ row, column }));
}

function frame(tile, name) {
  const picture = add(tile, 'span', 'picture');
  add(picture, 'span', 'hint-text', '');
  add(tile, 'b', 'fact', '');
  add(tile, 'small', 'facts', '');
  tile.dataset.name = name;
}

function fill(tile, item, facts, rest) {
  tile.dataset.state = item.video ? 'done' : 'failed';
  tile.querySelector('.fact').textContent = item.video ? facts : 'failed';
  tile.querySelector('.facts').textContent = item.video ? rest : item.error;
  tile.querySelector('.hint-text').textContent = '';
  tile.setAttribute('aria-label', `${tile.dataset.name}: ${item.video ? `${facts}, ${rest}` : item.error}`);
  if (!item.video) return;
  if (tile.matches('button')) tile.disabled = false;
  let video = tile.querySelector('video');
  if (!video) {
    video = document.createElement('video');
    Object.assign(video, { muted: true, loop: true, playsInline: true, preload: 'auto', disablePictureInPicture: true });
    video.setAttribute('aria-hidden', 'true');
    tile.querySelector('.picture').append(video);
    clips.add(video);
  }
  if (video.dataset.url !== item.video.url) {
    video.dataset.url = item.video.url;
    video.src = item.video.url;
  }
}

function fillDense(item, index) {
  const strip = find('.sweep-dense');
  let tile = strip.children[index];
  if (!tile) {
    tile = add(strip, 'div', 'clip dense');
    tile.setAttribute('role', 'img');
    frame(tile, `Dense, seed ${item.seed}, ${item.steps} steps`);
  }
  fill(tile, item, item.video ? `${item.seconds.toFixed(2)} s denoising` : '', `seed ${item.seed} · ${item.steps} steps`);
}

function fillCell(item) {
  const tile = find(`.clip[data-place="${item.row} ${item.column}"]`);
  if (!tile) return;
  const measured = item.speedup !== null;
  const main = measured ? `${item.speed} · ${METRICS.psnr.text(item.psnr)}` : 'no dense reference';
  const rest = item.video
    ? [
        measured ? `SSIM ${item.ssim.toFixed(3)}` : '',
        item.recall === null ? '' : `recall ${item.recall.toFixed(3)}`,
        `${(100 * item.density).toFixed(1)}% computed`,
        `${item.seconds.toFixed(2)} s`,
      ]
    : [];
  fill(tile, item, main, rest.filter(Boolean).join(' · '));
  tile.dataset.front = view.front[metric].some(([row, column]) => row === item.row && column === item.column);
}

function drawPlot() {
  const scale = METRICS[metric];
  const cells = view.cells.filter((cell) => cell.speedup !== null && cell[metric] !== null);
  const number = (value) => (value === 'inf' ? Infinity : value);
  const points = cells.map((cell) => {
    const front = view.front[metric].some(([row, column]) => row === cell.row && column === cell.column);
    const values = [cell.row, cell.column].slice(0, view.axes.length).map((at, axis) => view.axes[axis].values[at]);
    return {
      x: cell.speedup,
      y: number(cell[metric]),
      front,
      name: cellName(cell.row, cell.column),
      short: values.join(', '),
      text: `${cell.speed} · ${NAMES[metric]} ${scale.text(cell[metric])}${front ? ' · on the front' : ''}`,
      open: { row: cell.row, column: cell.column },
    };
  });
  find('.sweep-plot').hidden = !points.length && metric === 'psnr';
  if (points.length) {
    const perfect = metric === 'psnr' ? Infinity : 1;
    const best = Math.max(...points.filter((p) => p.y === perfect).map((p) => p.x), -Infinity);
    points.push({
      x: 1, y: perfect, dense: true, front: points.every((p) => p.x < 1 || p.y < perfect) || best <= 1, name: 'Dense', short: 'Dense',
      text: metric === 'psnr' ? '1× · ∞ dB, the reference itself' : '1× · 1, the reference itself',
    });
  }
  plot.set({ points, labels: { x: 'denoising speed-up (dense ÷ sparse seconds)', y: scale.label }, least: scale.least, most: scale.most, useful: scale.useful });
  find('.sweep-remark').textContent = view.remark;
  find('.sweep-seeds').replaceChildren();
  view.over_seeds.forEach((text) => add(find('.sweep-seeds'), 'li', '', text));
  const front = points.filter((p) => p.front && !p.dense).length;
  find('.sweep-note').textContent = !points.length
    ? `No ${NAMES[metric]} was measured in this sweep.`
    : front
      ? 'The line joins the videos that no other beats in both; hollow ones are beaten. Up and to the right is better.'
      : 'No sparse video is faster than dense here, so dense is the whole front. Up and to the right is better.';
  for (const button of root.querySelectorAll('.sweep-metrics button')) {
    button.setAttribute('aria-pressed', button.dataset.metric === metric);
    button.disabled = !view.cells.some((cell) => cell[button.dataset.metric] !== null);
  }
}

// A search tries few of its sparsities; the others take no place in the grid.
function hideUntried() {
  if (!view.search) return;
  const heads = root.querySelectorAll('.sweep-grid thead th');
  root.querySelectorAll('.sweep-grid tbody td').forEach((cell, place) => {
    cell.hidden = heads[place].hidden = cell.querySelector('.clip').dataset.state === 'waiting';
  });
}

function link(anchor, file) {
  anchor.hidden = !file;
  if (file) Object.assign(anchor, { href: file.url, download: file.orig_name });
}

function draw() {
  root.dataset.state = view.state || 'empty';
  if (!view.job) return;
  if (built !== view.job) build();
  clips.fps = view.clip.fps;
  view.dense.forEach(fillDense);
  view.cells.forEach(fillCell);
  link(find('.sweep-csv'), view.files.csv);
  link(find('.sweep-json'), view.files.json);
  hideUntried();
  drawPlot();
}

function progress(now) {
  const status = find('.sweep-status'); // read out, so only what is new is written
  if (status.dataset.text !== now.text) {
    status.dataset.text = now.text;
    status.textContent = now.text;
  }
  const percent = Math.round(100 * now.share);
  find('.sweep-track i').style.width = `${percent}%`;
  find('.sweep-track').setAttribute('aria-valuenow', percent);
  const place = now.place ? now.place.join(' ') : '';
  for (const tile of root.querySelectorAll('.sweep-grid .clip')) {
    if (tile.dataset.state === 'done' || tile.dataset.state === 'failed') continue;
    const over = ['done', 'stopped', 'failed'].includes(now.state);
    tile.dataset.state = tile.dataset.place === place ? 'busy' : 'waiting';
    tile.querySelector('.hint-text').textContent = tile.dataset.state === 'busy' ? 'Making…' : over ? 'Not made' : 'Waiting';
  }
  hideUntried();
}

let timer = 0;
async function look() {
  clearTimeout(timer);
  if (!element.isConnected) return;
  if (document.visibilityState === 'visible' && view.ticket) {
    try {
      const now = await server.look({ ticket: view.ticket });
      const state = `${now.job} ${now.tried} ${now.state}`;
      const drawn = `${view.job || ''} ${view.tried} ${view.state}`;
      if (now.job && state !== drawn && (state !== asked.state || Date.now() > asked.time + 5000)) {
        asked = { state, time: Date.now() };
        trigger('retry');
      }
      if (now.job && now.job === view.job) progress(now);
    } catch (error) {
      // no connection; the panel of readings says so
    }
  }
  timer = setTimeout(look, 700);
}
document.addEventListener('visibilitychange', look);

find('.sweep-play').addEventListener('click', ({ currentTarget: button }) => {
  clips.toggle();
  button.setAttribute('aria-pressed', clips.playing);
  button.textContent = clips.playing ? 'Pause clips' : 'Play clips';
});
if (calm) find('.sweep-play').textContent = 'Play clips';
root.querySelectorAll('.sweep-metrics button').forEach((button) =>
  button.addEventListener('click', () => {
    metric = button.dataset.metric;
    draw();
  }),
);

function take() {
  view = props.value || {};
  draw();
  look();
}
watch('value', take);
take(); // the tab may be opened long after the value came
