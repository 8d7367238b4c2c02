// What a block of the sparse video looked at, drawn over the video while it plays: lit blocks were read, dark ones were
// skipped. The blocks of other moments light up as the video comes to them. Needs blocks.js.
function attentionOverlay(frame, bar, sync, server) {
  const TEXT = {
    reads: (kept, total, mass) => `This block reads ${kept} of ${total} blocks, which hold ${mass} of its attention`,
    unmeasured: (kept, total) => `This block reads ${kept} of ${total} blocks`,
    basis: 'measured on one of its tokens',
    where: (step, steps, layer, layers) => `step ${step} of ${steps}, layer ${layer} of ${layers}`,
    heads: (heads) => `mean of ${heads} heads`,
    lost: 'No connection to the server; choose again when it is back.',
  };
  const LATENT_FRAMES = 4; // of the video, for each latent frame after the first
  const video = frame.querySelector('video');
  const say = (text) => (bar.querySelector('.look-text').textContent = text);
  let canvas = null;
  let key = '';
  let run = null;
  let query = null; // place of the chosen block
  let shares = []; // of the heads that read it, by key block
  let asked = 0;
  let drawn = '';

  const latent = () => (sync.position() ? 1 + Math.floor((sync.position() - 1) / LATENT_FRAMES) : 0);

  function clear() {
    asked += 1;
    query = null;
    drawn = '';
    canvas?.remove();
    delete bar.dataset.on;
    say('');
  }

  function set(newKey) {
    if (newKey === key) return;
    key = newKey;
    run = null;
    clear();
    bar.hidden = !key;
  }

  // x, y: shares of the picture
  async function choose(x, y) {
    if (!key) return;
    const mine = (asked += 1);
    const at = [latent(), y, x]; // what was pointed at, before the video moves on
    try {
      if (!run) {
        const found = await server.overview(key);
        if (mine !== asked) return;
        if (found.why || !found.stored.heads.length) return say(found.why || found.note);
        run = { ...found, q: blockGrid(found.grid, found.chunk_q), k: blockGrid(found.grid, found.chunk_k) };
      }
      const token = [at[0], ...[at[1], at[2]].map((share, i) => Math.floor(share * run.grid[i + 1]))];
      const place = run.q.holding(token.map((value, axis) => Math.min(run.grid[axis] - 1, Math.max(0, value))));
      await ask(place, mine);
    } catch (error) {
      if (mine === asked) say(TEXT.lost);
    }
  }

  async function ask(place, mine = (asked += 1)) {
    const middle = (list) => list[Math.floor(list.length / 2)];
    const [step, layer] = [middle(run.stored.steps), middle(run.stored.layers)];
    const answer = await server.look({ key, step, layer, block: run.q.number(place) });
    if (mine !== asked) return;
    if (answer.why) return say(answer.why);
    const heads = run.stored.heads.length;
    const width = Math.ceil(run.k.total / 8);
    const bytes = Uint8Array.from(atob(answer.kept), (letter) => letter.charCodeAt(0));
    const read = (head, block) => (bytes[head * width + (block >> 3)] >> (block & 7)) & 1;
    query = place;
    shares = Array.from({ length: run.k.total }, (_, block) => answer.recall.reduce((sum, _, head) => sum + read(head, block), 0) / heads);
    const known = answer.recall.filter((value) => value !== null);
    const kept = (shares.reduce((sum, share) => sum + share, 0)).toFixed(heads > 1 ? 1 : 0).replace(/\.0$/, '');
    const mass = `${((100 * known.reduce((sum, value) => sum + value, 0)) / known.length).toFixed(1)}%`;
    const first = known.length ? `${TEXT.reads(kept, run.k.total, mass)} · ${TEXT.basis}` : TEXT.unmeasured(kept, run.k.total);
    say([first, TEXT.where(step + 1, run.steps, layer + 1, run.layers), ...(heads > 1 ? [TEXT.heads(heads)] : [])].join(' · '));
    bar.dataset.on = run.q.number(place);
    drawn = '';
    draw();
  }

  function draw() {
    if (!query) return;
    if (!canvas) {
      canvas = document.createElement('canvas');
      canvas.className = 'look';
      canvas.setAttribute('aria-hidden', 'true');
    }
    if (!canvas.isConnected) frame.append(canvas);
    const t = latent();
    const now = `${t} ${query} ${frame.clientWidth}`;
    if (now === drawn) return;
    drawn = now;
    canvas.dataset.t = t; // for tests
    const [width, height] = [frame.clientWidth, frame.clientHeight]; // before any zoom
    const scale = window.devicePixelRatio || 1;
    Object.assign(canvas, { width: width * scale, height: height * scale });
    const c = canvas.getContext('2d');
    c.scale(scale, scale);
    const time = run.k.holding([t, 0, 0])[0];
    const box = (blocks, place) => {
      const [x, y, w, h] = blocks.box(place);
      return [x * width, y * height, w * width, h * height];
    };
    for (let h = 0; h < run.k.counts[1]; h += 1) {
      for (let w = 0; w < run.k.counts[2]; w += 1) {
        const share = shares[run.k.number([time, h, w])];
        const [x, y, wide, high] = box(run.k, [time, h, w]);
        c.fillStyle = share ? rampCss(share, 0.16) : 'rgb(9 12 20 / .72)';
        c.fillRect(x, y, wide, high);
        if (share) {
          c.strokeStyle = rampCss(0.35 + 0.65 * share);
          c.lineWidth = 1.5 + 1.5 * share;
          c.strokeRect(x + 1.5, y + 1.5, Math.max(0, wide - 3), Math.max(0, high - 3));
        }
      }
    }
    if (run.q.holding([t, 0, 0])[0] !== query[0]) return;
    const [x, y, wide, high] = box(run.q, query);
    for (const [colour, line] of [['rgb(0 0 0 / .85)', 6], ['#fff', 3]]) {
      c.strokeStyle = colour;
      c.lineWidth = line;
      c.strokeRect(x + 3, y + 3, Math.max(0, wide - 6), Math.max(0, high - 6));
    }
  }

  function pick(event) {
    const box = video.getBoundingClientRect();
    choose((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  }

  function move(by) {
    const place = query.map((at, axis) => Math.min(run.q.counts[axis] - 1, Math.max(0, at + by[axis])));
    ask(place).catch(() => say(TEXT.lost));
  }

  bar.querySelector('.look-start').addEventListener('click', () => choose(0.5, 0.5));
  bar.querySelector('.look-clear').addEventListener('click', clear);
  bar.querySelector('.look-more').addEventListener('click', () => {
    const tab = document.querySelector('#details button[role="tab"][data-tab-id="inspector"]');
    tab?.click();
    tab?.scrollIntoView({ block: 'start', behavior: 'smooth' });
  });
  new ResizeObserver(draw).observe(frame);

  return {
    set,
    pick,
    draw,
    clear,
    get on() { return Boolean(query); },
    move,
  };
}
