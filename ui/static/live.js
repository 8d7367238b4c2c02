// Texts are set through textContent only, so that nothing the server says can become markup.
const find = (selector) => element.querySelector(selector);
const chart = find('.live-chart');
const MOST_POINTS = 2400; // then the server is asked for thinner ones
const LINES = {
  used: { name: 'GPU used', kind: 'used', filled: true },
  process: { name: 'of it, this process', kind: 'process' },
  'torch.reserved': { name: 'PyTorch reserved', kind: 'reserved' },
  'torch.allocated': { name: 'PyTorch allocated', kind: 'allocated' },
  'host.used': { name: 'Host used', kind: 'used', filled: true },
  'process.rss': { name: 'This process (RSS)', kind: 'process' },
};
const LOADS = { utilization: 'GPU utilisation', 'host.cpu': 'CPU of the host, and this process' };
const page = { from: 0, place: '', hidden: new Set(), shows: '', times: [], series: {}, reading: null, cursor: null, asked: 0 };
let timeAt = () => 0;

const gib = (bytes) => (bytes === null || bytes === undefined ? '–' : (bytes / GIB).toFixed(2));
const present = (value) => value !== null && value !== undefined;

function takeIn(reading) {
  if (reading.fresh) {
    page.times = [];
    page.series = {};
  }
  const before = page.times.length;
  page.times.push(...reading.times);
  for (const [name, values] of Object.entries(reading.series)) {
    page.series[name] = (page.series[name] || new Array(before).fill(null)).concat(values);
  }
  for (const values of Object.values(page.series)) while (values.length < page.times.length) values.push(null);
  const old = page.times.findIndex((time) => time >= reading.span[0]);
  if (old > 0) {
    page.times.splice(0, old);
    for (const values of Object.values(page.series)) values.splice(0, old);
  }
  page.shows = page.times.length > MOST_POINTS ? '' : reading.shows;
  page.reading = reading;
}

// Every GPU of the machine now and of the run, and the host.
function places() {
  const { machine, job } = page.reading;
  const gpus = [...machine.gpus];
  for (const gpu of (job && page.from === 0 && job.gpus) || []) if (!gpus.some((one) => one.key === gpu.key)) gpus.push(gpu);
  return [...gpus, { key: 'host', label: 'Host', name: '', total: machine.host_total }];
}

function chosenPlace(all) {
  const { machine } = page.reading;
  const busy = all.find((place) => machine.values[`${place.key}.process`] > 0);
  const wanted = page.place || machine.torch_gpu || (busy && busy.key);
  return all.find((place) => place.key === wanted) || all[0];
}

function linesOf(place, all) {
  if (place.key === 'host') return ['host.used', 'process.rss'].map((key) => ({ ...LINES[key], key }));
  const { torch_gpu: torchGpu } = page.reading.machine;
  const own = ['used', 'process'].map((key) => ({ ...LINES[key], key: `${place.key}.${key}` }));
  const torch = ['torch.reserved', 'torch.allocated'].map((key) => ({ ...LINES[key], key }));
  return torchGpu === place.key || (!torchGpu && all.length === 2) ? [...own, ...torch] : own;
}

function render() {
  const { reading } = page;
  if (!reading || !reading.machine || !element.isConnected) return;
  const all = places();
  const place = chosenPlace(all);
  const { machine, job } = reading;
  const host = machine.gpus.length ? 'Host memory' : 'Host memory (no NVIDIA GPU)';
  find('.live-title').textContent = place.key === 'host' ? host : 'GPU memory';
  find('.live-note').textContent = machine.note;
  const lines = linesOf(place, all)
    .map((line) => ({ ...line, values: page.series[line.key] || [] }))
    .filter((line) => line.values.some(present) || present(machine.values[line.key]));
  const shownLines = lines.filter((line) => !page.hidden.has(line.kind));
  const loadKey = place.key === 'host' ? 'host.cpu' : `${place.key}.utilization`;
  const load = [{ kind: 'load', values: page.series[loadKey] || [] }];
  if (place.key === 'host') load.push({ kind: 'load-process', values: page.series['process.cpu'] || [] });
  const peaks = job ? Object.entries(job.peaks) : [];
  const first = (shownLines.find((line) => line.key === (place.key === 'host' ? 'process.rss' : `${place.key}.used`)) || { key: '' }).key;
  const marks = [];
  for (const [arm, found] of peaks) {
    shownLines.forEach((line) => {
      if (found[line.key]) marks.push({ arm, kind: line.kind, time: found[line.key][1], value: found[line.key][0], text: line.key === first ? `${gib(found[line.key][0])} GiB` : '' });
    });
  }
  const run = page.from === 0 && job;
  let top = GIB / 100;
  for (const { values } of shownLines) for (const value of values) if (value > top) top = value;
  const view = {
    span: run && !job.ended ? [reading.span[0], Math.max(reading.span[1], reading.span[0] + 5)] : reading.span,
    zero: run ? reading.span[0] : reading.span[1],
    times: page.times,
    lines: shownLines,
    top: 1.08 * top,
    load,
    loadName: LOADS[place.key === 'host' ? loadKey : 'utilization'],
    bands: job ? job.spans.map(([arm, phase, start, end]) => ({ arm, phase, start, end })) : [],
    busy: run ? [] : busySpans(job),
    peaks: marks,
    cursor: page.cursor,
  };
  timeAt = drawChart(chart, view);
  drawPlaces(all, place);
  drawValues(lines, job);
  drawShort(place, job);
  describe(view, place, lines, job);
}

// When the engine had something to do that is not this visitor's newest run: whose it was is nobody else's business.
function busySpans(job) {
  const spans = [];
  const own = job ? [job.started, job.ended || Infinity] : [1, 0];
  (page.series.busy || []).forEach((busy, i) => {
    const time = page.times[i];
    if (!busy || (time >= own[0] - 0.5 && time <= own[1] + 0.5)) return;
    const last = spans[spans.length - 1];
    const before = page.times[i - 1] ?? time;
    if (last && last[1] >= before) last[1] = time;
    else spans.push([time, time]);
  });
  return spans;
}

function drawPlaces(all, chosen) {
  const { machine } = page.reading;
  const root = find('.live-places');
  while (root.children.length > all.length) root.lastChild.remove();
  all.forEach((place, i) => {
    let button = root.children[i];
    if (!button) {
      button = document.createElement('button');
      button.type = 'button';
      button.innerHTML = '<b></b><span class="name"></span><span class="text"></span><span class="meter"><i></i></span><small></small>';
      button.addEventListener('click', () => {
        page.place = button.dataset.key;
        render();
      });
      root.append(button);
    }
    const values = (key) => machine.values[`${place.key}.${key}`];
    const used = values('used');
    button.dataset.key = place.key;
    button.setAttribute('aria-pressed', place.key === chosen.key);
    button.querySelector('b').textContent = place.label;
    button.querySelector('.name').textContent = place.name;
    button.querySelector('.text').textContent = present(used) ? `${gib(used)} of ${gib(place.total)} GiB` : 'no reading';
    button.querySelector('.meter i').style.width = `${present(used) && place.total ? Math.min(100, (100 * used) / place.total) : 0}%`;
    const facts = [];
    if (place.key === 'host') {
      facts.push(`CPU ${values('cpu').toFixed(0)}%`);
      if (present(machine.values['process.rss'])) facts.push(`this process ${gib(machine.values['process.rss'])} GiB`);
    } else {
      if (present(values('utilization'))) facts.push(`${values('utilization')}% busy`);
      if (present(values('power'))) facts.push(`${values('power').toFixed(0)}${place.limit ? ` of ${place.limit.toFixed(0)}` : ''} W`);
      if (present(values('temperature'))) facts.push(`${values('temperature')} °C`);
    }
    button.querySelector('small').textContent = facts.join(' · ');
  });
}

// The one line that stands for all while the panel is folded.
function drawShort(place, job) {
  const key = place.key === 'host' ? 'process.rss' : `${place.key}.used`;
  const peaks = Object.entries((job && job.peaks) || {}).filter(([, found]) => found[key]);
  const { values } = page.reading.machine;
  const texts = peaks.map(([arm, found]) => `${ARM_NAMES[arm] || arm} peak ${gib(found[key][0])} GiB`);
  if (!texts.length && present(values[key])) texts.push(`${place.key === 'host' ? 'this process' : 'used'} ${gib(values[key])} GiB`);
  put(find('.live-short'), texts.join(' · '));
}

function fold(open) {
  find('.live').dataset.open = open;
  find('#live_inside').hidden = !open;
  find('.live-fold').setAttribute('aria-expanded', open);
  if (open) render();
}

function valueAt(key, time) {
  const values = page.series[key] || [];
  return page.times.length ? values[indexAt(page.times, time)] : null;
}

function drawValues(lines, job) {
  const table = find('.live-values table');
  const peaks = (job && job.peaks) || {};
  for (const arm of ['dense', 'sparse']) table.toggleAttribute(`data-${arm}`, arm in peaks);
  find('.live-when').textContent = page.cursor === null ? 'Now' : `At ${timeText(page.cursor)}`;
  const body = table.tBodies[0];
  while (body.rows.length > lines.length) body.lastChild.remove();
  lines.forEach((line, i) => {
    let row = body.rows[i];
    if (!row) {
      row = body.insertRow();
      row.innerHTML = '<th scope="row"><button type="button"><i class="swatch"></i><span></span></button></th><td></td><td data-arm="dense"></td><td data-arm="sparse"></td><td class="live-change"></td>';
      row.querySelector('button').addEventListener('click', () => {
        const { kind } = row.dataset;
        if (!page.hidden.delete(kind)) page.hidden.add(kind);
        render();
      });
    }
    row.dataset.kind = line.kind;
    row.querySelector('button').setAttribute('aria-pressed', !page.hidden.has(line.kind));
    row.querySelector('button').title = 'Show or hide this curve';
    row.querySelector('span').textContent = line.name;
    const now = page.cursor === null ? page.reading.machine.values[line.key] : valueAt(line.key, page.cursor);
    const [dense, sparse] = ['dense', 'sparse'].map((arm) => peaks[arm] && peaks[arm][line.key] && peaks[arm][line.key][0]);
    [gib(now), gib(dense), gib(sparse), change(dense, sparse)].forEach((text, n) => {
      row.cells[n + 1].textContent = text;
    });
  });
}

function change(dense, sparse) {
  if (!present(dense) || !present(sparse)) return '–';
  const sign = sparse > dense ? '+' : sparse < dense ? '−' : '±';
  return `${sign}${gib(Math.abs(sparse - dense))} (${sign}${((100 * Math.abs(sparse - dense)) / dense).toFixed(1)}%)`;
}

function timeText(time) {
  const { span, now } = page.reading;
  return page.from === 0 && page.reading.job ? `${(time - span[0]).toFixed(1)} s` : `−${duration(Math.max(0, now - time))}`;
}

function describe(view, place, lines, job) {
  const [start, end] = view.span;
  const at = page.cursor === null ? end : page.cursor;
  const band = view.bands.find((one) => one.start <= at && at <= one.end);
  chart.setAttribute('aria-valuemax', Math.round(end - start));
  chart.setAttribute('aria-valuenow', Math.round(at - start));
  const phase = band ? `${ARM_NAMES[band.arm] || band.arm}, ${PHASE_NAMES[band.phase] || band.phase} · ` : '';
  const values = lines.map((line) => `${line.name}: ${gib(page.cursor === null ? page.reading.machine.values[line.key] : valueAt(line.key, at))} GiB`);
  chart.setAttribute('aria-valuetext', `${timeText(at)} · ${phase}${values.join(' · ')}`);
  const peaks = !job ? [] : Object.entries(job.peaks).flatMap(([arm, found]) => lines.filter((line) => found[line.key]).map((line) => `${ARM_NAMES[arm] || arm} peak, ${line.name}: ${gib(found[line.key][0])} GiB`));
  find('#live_summary').textContent = [`Memory of ${place.label} over ${duration(end - start)}`, ...peaks].join('. ');
}

function moveTo(time) {
  const { span } = page.reading;
  page.cursor = time === null ? null : Math.min(Math.max(time, span[0]), span[1]);
  render();
}

chart.addEventListener('pointermove', (event) => page.reading && moveTo(timeAt(event.clientX)));
chart.addEventListener('pointerdown', (event) => page.reading && moveTo(timeAt(event.clientX)));
chart.addEventListener('pointerleave', (event) => page.reading && event.pointerType === 'mouse' && moveTo(null));
chart.addEventListener('blur', () => page.reading && moveTo(null));
chart.addEventListener('keydown', (event) => {
  if (!page.reading) return;
  const [start, end] = page.reading.span;
  const now = page.cursor === null ? end : page.cursor;
  const to = {
    ArrowLeft: now - (end - start) / 100,
    ArrowRight: now + (end - start) / 100,
    PageDown: now - (end - start) / 10,
    PageUp: now + (end - start) / 10,
    Home: start,
    End: end,
    Escape: null,
  }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  moveTo(to);
});
for (const button of element.querySelectorAll('.live-windows button')) {
  button.addEventListener('click', () => {
    page.from = Number(button.dataset.from);
    page.cursor = null;
    for (const other of element.querySelectorAll('.live-windows button')) other.setAttribute('aria-pressed', other === button);
    poll();
  });
}
const OPEN = 'bsa-memory-open';
find('.live-fold').addEventListener('click', () => {
  const open = find('.live').dataset.open !== 'true';
  fold(open);
  try {
    localStorage.setItem(OPEN, open);
  } catch (error) {
    // a browser that keeps nothing begins folded
  }
});
try {
  fold(localStorage.getItem(OPEN) === 'true');
} catch (error) {
  fold(false);
}
new ResizeObserver(render).observe(chart);

// Only what is new is written: these are read out, and may show another language than they were written in.
function put(node, text) {
  if (node.dataset.text === text) return;
  node.dataset.text = text;
  node.textContent = text;
}

function status(state, message) {
  const pill = document.querySelector('#header .pill');
  if (!pill) return;
  pill.dataset.state = state;
  put(pill.querySelector('.pill-text'), message);
}

function age(text, stale) {
  const label = find('.live-age');
  put(label, text);
  label.classList.toggle('stale', stale);
}

let timer = 0;
async function poll() {
  clearTimeout(timer);
  if (!element.isConnected) return;
  if (document.visibilityState === 'visible') {
    page.asked += 1;
    const turn = page.asked;
    const { ticket, job, since } = props.value || {};
    try {
      const reading = await server.poll({ ticket, job, picked: since, from: page.from, last: page.times[page.times.length - 1] || 0, shows: page.shows });
      if (turn !== page.asked) return; // another question was asked meanwhile
      status(reading.worker.state, reading.worker.message);
      age(reading.machine ? 'live' : 'no reading', !reading.machine);
      if (reading.machine) {
        takeIn(reading);
        render();
      }
    } catch (error) {
      if (turn !== page.asked) return;
      age('no connection', true);
      status('failed', 'No connection to the server; start it again, this page reconnects by itself');
    }
  }
  clearTimeout(timer);
  timer = setTimeout(poll, 1000);
}
document.addEventListener('visibilitychange', () => document.visibilityState === 'visible' && poll());
poll();
