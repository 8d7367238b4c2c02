// The panel asks the server for a run when it is first seen, and for a block when one is chosen.
// Texts are set through textContent only.
const TEXT = {
  nothing: 'After a sparse run, this shows which blocks of the video each block looked at, and how much of its attention that was.',
  lost: 'No connection to the server; choose again when it is back.',
  ofSteps: (number, total) => `${number} of ${total}`,
  allHeads: 'All heads',
  head: (number) => `Head ${number}`,
  frames: (first, last) => (first === last ? `frame ${first}` : `frames ${first}–${last}`),
  oneHead: (number, kept, total, mass) => `In head ${number} this block reads ${kept} of ${total} blocks and with them ${mass} of its attention.`,
  manyHeads: (heads, kept, total, mass, union) =>
    `Each of the ${heads} heads reads ${kept} of ${total} blocks for this block, together ${union} different ones, and keeps ${mass} of its attention on average.`,
  oneHeadUnknown: (number, kept, total) => `In head ${number} this block reads ${kept} of ${total} blocks; its attention was not measured.`,
  manyHeadsUnknown: (heads, kept, total, mass, union) =>
    `Each of the ${heads} heads reads ${kept} of ${total} blocks for this block, together ${union} different ones.`,
  chance: (share) => `As many tokens drawn by chance would hold ${share}.`,
  keptShort: (mass) => `${mass} of its attention kept`,
  basis: 'That is measured on one token of the block in each head.',
  oneToken: 'measured on one of its tokens',
  chanceShort: (share) => `▲ ${share} by chance`,
  between: (low, high) => (low === high ? `${low}` : `${low} to ${high}`),
  everyHead: (number) => (number === 1 ? 'the only head' : `all ${number} heads`),
  readBy: (place, readers, heads) => `block ${place}: read by ${readers} of ${heads} heads`,
  isRead: (place, read) => `block ${place}: ${read ? 'read' : 'skipped'}`,
  step: 'step',
  layer: 'layer',
  cell: (step, layer, value) => `step ${step}, layer ${layer}: ${value}`,
  keys: 'Arrow keys choose step and layer',
  some: (steps, layers, heads) => `The blocks of ${steps} steps, ${layers} layers and ${heads} heads were kept, evenly spread. Dots mark them in the maps.`,
};

const root = element.querySelector('.inside');
const find = (selector) => root.querySelector(selector);
const grouped = (number) => number.toLocaleString('en');
const percent = (share) => `${(100 * share).toFixed(1)}%`;
const choice = { step: 0, layer: 0, head: -1, query: [0, 0, 0] }; // step and layer as numbers, head -1 for all
let key = '';
let opened = '';
let run = null;
let seen = null; // what the chosen block reads: heads x key blocks, and its recall
let asked = 0;

const strip = blockStrip(find('.inside-strip'), choose, tellHovered);
const maps = Object.fromEntries(
  ['recall', 'density'].map((name) => {
    const figure = find(`[data-map="${name}"]`);
    const words = { ...TEXT, name: figure.querySelector('b').textContent };
    return [name, heatGrid(figure, words, goTo)];
  }),
);

// as in an empty stage: a block and the few that it reads
for (let i = 0; i < 42; i += 1) {
  const cell = document.createElementNS('http://www.w3.org/2000/svg', 'rect');
  const [x, y] = [(i % 14) * 12 + 1, Math.floor(i / 14) * 20 + 4];
  const part = { 21: 'query', 7: 'on', 20: 'on', 22: 'on', 35: 'on', 12: 'on', 25: 'on' }[i] || 'off';
  Object.entries({ x, y, width: 10, height: 14, rx: 2, class: part }).forEach(([name, value]) => cell.setAttribute(name, value));
  find('.cells').append(cell);
}

function empty(why) {
  run = null;
  root.dataset.state = 'empty';
  find('.inside-why').textContent = why || TEXT.nothing;
}

async function open() {
  if (!key || key === opened || !element.offsetParent) return;
  const mine = (opened = key);
  root.dataset.state = run ? 'ready' : 'loading';
  let answer;
  try {
    answer = await server.overview(mine);
  } catch (error) {
    opened = '';
    answer = { why: TEXT.lost };
  }
  if (mine !== key) return;
  if (answer.why) empty(answer.why);
  else draw(answer);
}

function draw(overview) {
  run = overview;
  const { steps, layers, heads } = run.stored;
  const recorded = steps.length * layers.length * heads.length;
  root.dataset.state = recorded ? 'ready' : 'maps';
  strip.open(run, ({ first, last }) => TEXT.frames(first + 1, last + 1));
  const thinned = recorded && recorded < run.steps * run.layers * run.heads;
  find('.inside-note').textContent = run.note || (thinned ? TEXT.some(...['steps', 'layers', 'heads'].map((name) => TEXT.ofSteps(run.stored[name].length, run[name]))) : '');
  for (const [name, list] of [['step', steps], ['layer', layers]]) {
    find(`.at-${name}`).max = Math.max(0, list.length - 1);
    choice[name] = list.includes(choice[name]) && seen ? choice[name] : (list[Math.floor(list.length / 2)] ?? 0);
  }
  if (!heads.includes(choice.head)) choice.head = -1;
  if (!seen || choice.query.some((at, axis) => at >= run.q.counts[axis])) {
    choice.query = run.q.counts.map((count) => Math.floor((count - 1) / 2));
  }
  const known = run.recall.flat().filter((value) => value !== null);
  maps.recall.open(run.recall, run.stored, [Math.floor(20 * Math.min(...known, 1)) / 20, 1]);
  const densities = run.density.flat().filter((value) => value !== null); // null in steps that were skipped
  const [least, most] = [Math.min(...densities), Math.max(...densities)];
  maps.density.open(run.density, run.stored, [0, most - least > 1e-3 ? Math.ceil(20 * most) / 20 : 1]);
  headButtons();
  if (recorded) ask();
}

function headButtons() {
  const heads = [-1, ...run.stored.heads];
  find('.inside-heads').replaceChildren(
    ...heads.map((head) => {
      const button = document.createElement('button');
      button.type = 'button';
      button.dataset.head = head;
      button.append(document.createElement('span'), document.createElement('i'));
      button.firstChild.textContent = head < 0 ? TEXT.allHeads : TEXT.head(head + 1);
      button.addEventListener('click', () => {
        choice.head = head;
        show();
      });
      return button;
    }),
  );
}

// Positions on the sliders count the steps and layers that were stored.
function goTo(step, layer) {
  Object.assign(choice, { step, layer });
  ask();
}

function choose(query) {
  choice.query = query;
  ask();
}

async function ask() {
  if (!run || !run.stored.heads.length) return;
  place();
  const mine = (asked += 1);
  let answer;
  try {
    answer = await server.look({ key, step: choice.step, layer: choice.layer, block: run.q.number(choice.query) });
  } catch (error) {
    answer = { why: TEXT.lost };
  }
  if (mine !== asked || !run) return;
  if (answer.why) {
    find('.inside-sentence').textContent = answer.why;
    return;
  }
  const bytes = Uint8Array.from(atob(answer.kept), (letter) => letter.charCodeAt(0));
  const width = Math.ceil(run.k.total / 8);
  seen = {
    recall: answer.recall,
    kept: run.stored.heads.map((_, row) =>
      Array.from({ length: run.k.total }, (_, block) => (bytes[row * width + (block >> 3)] >> (block & 7)) & 1),
    ),
  };
  show();
}

function place() {
  for (const [name, total] of [['step', run.steps], ['layer', run.layers]]) {
    const slider = find(`.at-${name}`);
    const at = run.stored[`${name}s`].indexOf(choice[name]);
    slider.value = at;
    const text = TEXT.ofSteps(choice[name] + 1, total);
    slider.setAttribute('aria-valuetext', text);
    find(`.${name}-text`).textContent = text;
  }
  Object.values(maps).forEach((map) => map.mark(choice.step, choice.layer));
}

function show() {
  const { heads } = run.stored;
  const rows = choice.head < 0 ? seen.kept : [seen.kept[heads.indexOf(choice.head)]];
  const shares = seen.kept[0].map((_, block) => rows.reduce((sum, row) => sum + row[block], 0) / rows.length);
  strip.show(choice.query, shares, choice.head < 0 && heads.length > 1);
  root.dataset.heads = choice.head < 0 && heads.length > 1 ? 'all' : 'one';
  root.dataset.kept = shares.flatMap((share, block) => (share ? [block] : [])).join(' '); // for scripts and tests
  root.dataset.at = [choice.step, choice.layer, choice.head, run.q.number(choice.query)].join(' ');
  find('.ramp-end').textContent = TEXT.everyHead(heads.length);
  [...find('.inside-heads').children].forEach((button) => {
    const head = Number(button.dataset.head);
    button.setAttribute('aria-pressed', head === choice.head);
    const mass = head < 0 ? mean(seen.recall) : seen.recall[heads.indexOf(head)];
    button.style.setProperty('--kept', mass ?? 0);
    button.title = mass === null ? '' : TEXT.keptShort(percent(mass));
  });
  const counts = rows.map((row) => row.reduce((sum, bit) => sum + bit, 0));
  const tokens = rows.map((row) => row.reduce((sum, bit, block) => sum + bit * run.k.tokens(run.k.place(block)), 0));
  const chance = mean(tokens) / (run.grid[0] * run.grid[1] * run.grid[2]);
  const mass = choice.head < 0 ? mean(seen.recall) : seen.recall[heads.indexOf(choice.head)];
  verdict(counts, chance, mass, shares.filter(Boolean).length);
  tellHovered(-1);
}

function verdict(counts, chance, mass, union) {
  const { heads } = run.stored;
  const kept = TEXT.between(...[Math.min(...counts), Math.max(...counts)].map(grouped));
  const say = (one, many) =>
    root.dataset.heads === 'all'
      ? many(heads.length, kept, grouped(run.k.total), percent(mass ?? 0), grouped(union))
      : one((choice.head < 0 ? heads[0] : choice.head) + 1, kept, grouped(run.k.total), percent(mass ?? 0));
  const text = mass === null ? say(TEXT.oneHeadUnknown, TEXT.manyHeadsUnknown) : say(TEXT.oneHead, TEXT.manyHeads);
  find('.inside-sentence').textContent = [text, ...(mass === null ? [] : [TEXT.basis]), TEXT.chance(percent(chance))].join(' ');
  const bar = find('.inside-verdict');
  bar.style.setProperty('--kept', mass ?? 0);
  bar.style.setProperty('--chance', chance);
  bar.dataset.measured = mass !== null;
  find('.kept-text').textContent = mass === null ? '' : `${TEXT.keptShort(percent(mass))} · ${TEXT.oneToken}`;
  find('.chance-text span').textContent = TEXT.chanceShort(percent(chance));
}

function mean(values) {
  const known = values.filter((value) => value !== null);
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
}

function tellHovered(block) {
  const output = find('.inside-hover');
  output.textContent = '';
  if (block < 0 || !seen) return;
  const where = run.k.place(block).map((at) => at + 1).join('·');
  const readers = seen.kept.reduce((sum, row) => sum + row[block], 0);
  const one = choice.head < 0 ? 0 : run.stored.heads.indexOf(choice.head);
  output.textContent =
    root.dataset.heads === 'all' ? TEXT.readBy(where, readers, seen.kept.length) : TEXT.isRead(where, seen.kept[one][block]);
}

function download(name, content, type) {
  const copy = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  Object.assign(document.createElement('a'), { href: copy, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(copy), 60000);
}

// One line for every step and layer, counted from 1 as on the page.
function table() {
  const line = (layer, step) => [step + 1, layer + 1, run.recall[layer][step] ?? '', run.density[layer][step]].join(',');
  const lines = run.recall.flatMap((steps, layer) => steps.map((_, step) => line(layer, step)));
  return ['step,layer,recall,density', ...lines, ''].join('\n');
}

find('.inside-files').addEventListener('click', async ({ target }) => {
  const { file } = target.dataset;
  if (!run || !file) return;
  if (file === 'csv') download('attention.csv', table(), 'text/csv');
  else if (file === 'npz') {
    const answer = await server.record(key).catch(() => ({ why: TEXT.lost }));
    if (answer.why) find('.inside-note').textContent = answer.why;
    else download('attention.npz', Uint8Array.from(atob(answer.npz), (letter) => letter.charCodeAt(0)), 'application/octet-stream');
  } else {
    const picture = await new Promise((done) => root.querySelector(`[data-map="${file}"] canvas`).toBlob(done));
    if (picture) download(`attention-${file}.png`, picture);
  }
});

for (const name of ['step', 'layer']) {
  find(`.at-${name}`).addEventListener('input', ({ target }) => {
    choice[name] = run.stored[`${name}s`][Number(target.value)];
    ask();
  });
}

find('.inside-strip').addEventListener('keydown', (event) => {
  const moves = { ArrowLeft: [0, 0, -1], ArrowRight: [0, 0, 1], ArrowUp: [0, -1, 0], ArrowDown: [0, 1, 0], PageUp: [-1, 0, 0], PageDown: [1, 0, 0] };
  const move = moves[event.key];
  if (!run || !move || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  choose(choice.query.map((at, axis) => Math.min(run.q.counts[axis] - 1, Math.max(0, at + move[axis]))));
});

function take() {
  const value = props.value || {};
  key = value.key || '';
  if (!key) empty(value.why);
  else open();
}

watch('value', take);
new IntersectionObserver(open).observe(element);
take();
