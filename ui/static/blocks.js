// Blocks of a token grid in raster order, and the pictures of the video that show them. The first `lead` frames, which
// the video begins with, have blocks of their own.
function blockGrid(grid, chunk, lead = 0) {
  const starts = []; // of the blocks in time
  for (let t = 0; t < grid[0]; t = Math.min(t + chunk[0], t < lead ? lead : grid[0])) starts.push(t);
  const counts = [starts.length, ...[1, 2].map((axis) => Math.ceil(grid[axis] / chunk[axis]))];
  const side = (at, axis) =>
    axis ? Math.min(chunk[axis], grid[axis] - at * chunk[axis]) : (starts[at + 1] ?? grid[0]) - starts[at];
  return {
    counts,
    total: counts[0] * counts[1] * counts[2],
    number: ([t, h, w]) => (t * counts[1] + h) * counts[2] + w,
    place: (number) => [Math.floor(number / (counts[1] * counts[2])), Math.floor(number / counts[2]) % counts[1], number % counts[2]],
    holding: (token) =>
      token.map((at, axis) => (axis ? Math.floor(at / chunk[axis]) : starts.findLastIndex((start) => start <= at))),
    tokens: (place) => place.reduce((product, at, axis) => product * side(at, axis), 1),
    // left, top, width and height as shares of the picture
    box: ([, h, w]) => [(w * chunk[2]) / grid[2], (h * chunk[1]) / grid[1], side(w, 2) / grid[2], side(h, 1) / grid[1]],
  };
}

// Dark blue, teal, yellow: from few to many, readable on light and dark and without colour vision.
const RAMP = [[38, 42, 110], [28, 98, 150], [15, 150, 150], [96, 200, 120], [250, 232, 90]];

function rampColour(share) {
  const at = Math.min(1, Math.max(0, share)) * (RAMP.length - 1);
  const low = Math.min(RAMP.length - 2, Math.floor(at));
  return RAMP[low].map((channel, i) => Math.round(channel + (at - low) * (RAMP[low + 1][i] - channel)));
}

const rampCss = (share, alpha = 1) => `rgb(${rampColour(share).join(' ')} / ${alpha})`;

// A canvas as large as it is shown, in device pixels; returns its context and size in CSS pixels.
function fitCanvas(canvas) {
  const { width, height } = canvas.getBoundingClientRect();
  const scale = window.devicePixelRatio || 1;
  const [w, h] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
  const context = canvas.getContext('2d');
  context.setTransform(scale, 0, 0, scale, 0, 0);
  return { context, width, height };
}

// The strip: one canvas per stretch of time. chosen(place of a query block), hovered(number of a key block or -1).
function blockStrip(root, chosen, hovered) {
  let run = null;
  let shares = []; // of the heads that read it, by key block
  let query = [0, 0, 0];
  let all = false;
  let under = null; // picture and key block under the pointer
  const image = new Image();

  function open(overview, texts) {
    run = overview;
    run.q = blockGrid(run.grid, run.chunk_q, run.lead);
    run.k = blockGrid(run.grid, run.chunk_k, run.lead);
    root.style.setProperty('--aspect', run.aspect);
    root.style.setProperty('--columns', Math.min(run.segments.length, run.aspect > 1.3 ? 3 : 4));
    root.style.setProperty('--columns-narrow', Math.min(run.segments.length, run.aspect > 1.3 ? 1 : 2)); // blocks to tap on
    root.replaceChildren(
      ...run.segments.map((segment, i) => {
        const figure = document.createElement('figure');
        const canvas = document.createElement('canvas');
        const caption = document.createElement('figcaption');
        caption.textContent = texts(segment);
        canvas.addEventListener('click', (event) => {
          const token = tokenAt(canvas, segment, event);
          chosen(run.q.holding(token));
        });
        canvas.addEventListener('pointermove', (event) => hover(i, run.k.number(run.k.holding(tokenAt(canvas, segment, event)))));
        canvas.addEventListener('pointerleave', () => hover(-1, -1));
        figure.append(canvas, caption);
        return figure;
      }),
    );
    image.removeAttribute('src');
    if (run.pictures) {
      image.src = run.pictures;
      image.decode().then(draw, () => {});
    }
  }

  function tokenAt(canvas, segment, event) {
    const box = canvas.getBoundingClientRect();
    const at = (offset, length, size) => Math.min(size - 1, Math.max(0, Math.floor((offset / length) * size)));
    return [segment.t, at(event.clientY - box.top, box.height, run.grid[1]), at(event.clientX - box.left, box.width, run.grid[2])];
  }

  function hover(picture, block) {
    if (under && under.picture === picture && under.block === block) return;
    under = { picture, block };
    hovered(block);
    draw();
  }

  function drawOne(canvas, segment, i) {
    const { context: c, width, height } = fitCanvas(canvas);
    if (!width) return;
    c.fillStyle = '#10151f';
    c.fillRect(0, 0, width, height);
    if (image.complete && image.naturalWidth) {
      const tall = image.naturalHeight / run.segments.length;
      c.drawImage(image, 0, i * tall, image.naturalWidth, tall, 0, 0, width, height);
    }
    const time = run.k.holding([segment.t, 0, 0])[0];
    const snap = (at) => Math.round(at * window.devicePixelRatio) / window.devicePixelRatio; // crisp lines
    const box = (blocks, place) => {
      const [x, y, w, h] = blocks.box(place);
      const [left, top] = [snap(x * width), snap(y * height)];
      return [left, top, snap((x + w) * width) - left, snap((y + h) * height) - top];
    };
    const lines = width / run.k.counts[2] < 36 ? 1 : 2;
    for (let h = 0; h < run.k.counts[1]; h += 1) {
      for (let w = 0; w < run.k.counts[2]; w += 1) {
        const number = run.k.number([time, h, w]);
        const share = shares[number] || 0;
        const area = box(run.k, [time, h, w]);
        if (share) {
          if (all) {
            c.fillStyle = rampCss(share, 0.45);
            c.fillRect(...area);
          }
          edge(c, area, all ? rampCss(share) : rampCss(0.75), lines);
        } else {
          c.fillStyle = 'rgb(9 12 20 / .8)';
          c.fillRect(...area);
          edge(c, area, 'rgb(255 255 255 / .13)', 0.5);
        }
        if (under && under.picture === i && under.block === number) edge(c, area, 'rgb(255 255 255 / .9)', 1);
      }
    }
    const here = run.q.holding([segment.t, 0, 0])[0] === query[0];
    if (here) {
      // inside the block where it is large enough to stay visible, around it where it is not
      const [x, y, w, h] = box(run.q, query);
      const out = Math.min(w, h) < 24 ? 3 : 0;
      const ring = (by) => [x - by, y - by, w + 2 * by, h + 2 * by];
      edge(c, ring(out), 'rgb(0 0 0 / .85)', out ? 1 : 5);
      edge(c, ring(out - Boolean(out)), '#fff', out ? 2 : 3);
    }
    canvas.parentElement.dataset.here = here;
  }

  function edge(c, [x, y, w, h], colour, line) {
    c.strokeStyle = colour;
    c.lineWidth = line;
    c.strokeRect(x + line / 2, y + line / 2, Math.max(0, w - line), Math.max(0, h - line));
  }

  function draw() {
    if (!run) return;
    [...root.querySelectorAll('canvas')].forEach((canvas, i) => drawOne(canvas, run.segments[i], i));
  }

  new ResizeObserver(draw).observe(root);

  return {
    open,
    show(newQuery, newShares, allHeads) {
      [query, shares, all] = [newQuery, newShares, allHeads];
      draw();
    },
  };
}
