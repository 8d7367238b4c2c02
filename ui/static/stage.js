// One tile per kind of attention. A tile keeps its video until the next one is finished; while a video is
// being made, the latent preview (a strip of frames) plays over it. Texts are set through textContent only.
const stage = element.querySelector('.stage');
const tiles = Object.fromEntries([...element.querySelectorAll('.tile')].map((t) => [t.dataset.arm, t]));
const calm = matchMedia('(prefers-reduced-motion: reduce)').matches;
const preview = { arm: '', strip: null, image: new Image(), fps: 4, frame: 0 };
const player = comparePlayer(element.querySelector('.player'), tiles, server);
const segments = timeline(element.querySelector('.timeline'), (asked) => trigger('edit', { job, ...asked }), (frame) => play(frame));
let job = '';
let clips = null; // frame rate and length of the newest pair

function paint() {
  const tile = tiles[preview.arm];
  if (!tile || !preview.strip || !preview.image.complete) return;
  const canvas = tile.querySelector('canvas');
  const { width, height, frames } = preview.strip;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  canvas.getContext('2d').drawImage(preview.image, 0, (preview.frame % frames) * height, width, height, 0, 0, width, height);
  tile.dataset.preview = 'on';
}

function tick() {
  if (!element.isConnected) return;
  if (!calm) preview.frame += 1;
  paint();
  setTimeout(tick, 1000 / Math.max(1, preview.fps));
}
tick();

function show(tile, file, caption) {
  const video = tile.querySelector('video');
  if (video.dataset.url !== file.url) {
    video.dataset.url = file.url;
    video.src = file.url;
    const save = tile.querySelector('.save');
    Object.assign(save, { href: file.url, download: file.orig_name || 'video.mp4' });
    if (!calm) video.play().catch(() => {});
  }
  tile.dataset.caption = caption;
  tile.dataset.video = job;
}

// What the two come to, under the videos, and where a pair is from that nobody made here.
function tell({ figures, about }) {
  const list = element.querySelector('.figures');
  list.hidden = !figures.length;
  list.replaceChildren(
    ...figures.map((texts) => {
      const item = document.createElement('li');
      item.append(...['b', 'span'].map((name, i) => Object.assign(document.createElement(name), { textContent: texts[i] })));
      item.title = texts[2];
      item.dataset.sure = texts[3];
      // a range has its reason beside it
      if (!texts[3]) item.append(Object.assign(document.createElement('small'), { textContent: texts[2] }));
      return item;
    }),
  );
  const label = element.querySelector('.about');
  label.hidden = !about;
  label.textContent = about;
}

// The server's answer has a name of its own for each file, which a browser prefers to the link's; a copy has none.
async function save(event) {
  const { href, download } = event.currentTarget;
  event.preventDefault();
  const copy = URL.createObjectURL(await (await fetch(href)).blob());
  Object.assign(document.createElement('a'), { href: copy, download }).click();
  setTimeout(() => URL.revokeObjectURL(copy), 60000);
}
element.querySelectorAll('.save').forEach((link) => link.addEventListener('click', save));

// What is on the stage goes to a segment's first frame: a pair together, one video by itself.
function play(frame) {
  if (player.goTo(frame)) return true;
  const shown = Object.values(tiles).filter((tile) => tile.dataset.video === job && tile.dataset.state === 'video');
  shown.forEach((tile) => (tile.querySelector('video').currentTime = (frame + 0.5) / (clips?.fps || 15)));
  return shown.length > 0;
}

// The video of a tile is a clip to go on from; which run it is of, the tile knows.
for (const [arm, tile] of Object.entries(tiles)) {
  tile.querySelector('.go-on').addEventListener('click', () => trigger('submit', owner(tile.dataset.video, arm)));
}
// Of a pair from two runs, the tiles show the sparse video of each, or its only one.
function owner(run, arm) {
  const names = run.split(' ');
  return names.length < 2 ? { job: run, arm } : { job: names[arm === 'dense' ? 0 : 1], arm: '' };
}

// Of two runs that were chosen in the history, the tiles bear what is different; a vote between them would count for
// dense or sparse, and there is none.
function nameTiles(names) {
  ['.tile .name', '.overlay .badge'].forEach((kind) =>
    [...element.querySelectorAll(kind)].forEach((node, i) => {
      const text = names ? names[i] : node.dataset.plain;
      if (node.dataset.text !== text) node.textContent = node.dataset.text = text;
    }),
  );
  element.querySelector('.modes [data-mode="blind"]').hidden = Boolean(names);
}

function draw(view) {
  job = view.job;
  nameTiles(view.names);
  stage.dataset.arms = view.arms.join(' ');
  stage.style.setProperty('--aspect', view.aspect);
  preview.arm = view.arm;
  preview.fps = view.fps;
  if (view.preview && view.preview.src !== preview.image.src) {
    preview.image.src = view.preview.src;
    preview.image.decode().then(paint, () => {});
  }
  preview.strip = view.preview;
  for (const [arm, tile] of Object.entries(tiles)) {
    if (view.videos[arm]) show(tile, view.videos[arm], view.captions[arm]);
    const busy = arm === view.arm && !view.videos[arm];
    const waits = !busy && !view.over && view.arms.includes(arm) && !view.videos[arm];
    tile.dataset.state = busy ? 'busy' : waits ? 'waits' : tile.dataset.video ? 'video' : 'empty';
    tile.dataset.older = Boolean(tile.dataset.video && tile.dataset.video !== job);
    if (!busy || !view.preview) delete tile.dataset.preview;
    // what stands there until then is another run's, and so are its figures and its file
    const caption = tile.querySelector('.caption');
    caption.textContent = busy || waits ? caption.dataset.plain : tile.dataset.caption || caption.dataset.plain;
    for (const name of ['.save', '.go-on']) tile.querySelector(name).hidden = busy || waits || !tile.dataset.video;
    tile.querySelector('.label').textContent = busy ? view.label : waits ? 'Waiting' : '';
    const track = tile.querySelector('.track');
    track.classList.toggle('unknown', busy && !view.total);
    track.querySelector('i').style.width = busy && view.total ? `${(100 * view.step) / view.total}%` : '';
    if (busy && view.total) {
      track.setAttribute('aria-valuemax', view.total);
      track.setAttribute('aria-valuenow', view.step);
    } else {
      track.removeAttribute('aria-valuenow');
    }
  }
  const { dense, sparse } = tiles;
  const still = view.over || view.arms.every((arm) => view.videos[arm]);
  const pair = still && view.arms.length === 2 && dense.dataset.video && dense.dataset.video === sparse.dataset.video;
  if (Object.keys(view.videos).length) clips = view.clip;
  tell(pair ? view : { figures: [], about: '' });
  segments.draw(view.timeline, view.job);
  player.set(pair ? dense.dataset.video : '', pair ? clips : null, calm, view.inside || '');
}

document.addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) document.querySelector('#generate')?.click();
});

watch('value', () => {
  if (props.value && props.value.job) draw(props.value);
});
