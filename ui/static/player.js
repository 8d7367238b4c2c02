// The controls over a pair of clips, and the four ways of looking at it. Without a pair the tiles stand for
// themselves, each with the browser's own controls.
function comparePlayer(root, tiles, server) {
  const find = (selector) => root.querySelector(selector);
  const all = (selector) => [...root.querySelectorAll(selector)];
  const clips = [tiles.dense, tiles.sparse].map((tile) => tile.querySelector('video'));
  const scrub = find('.scrub');
  const play = find('.play');
  let mode = 'side'; // what was asked for; shown while there is a pair
  let opened = '';
  let resume = false;

  const sync = syncClips(clips, show);
  const blind = blindTest(root, tiles);
  const heat = heatMap(find('.heat-map'), clips, sync, (mean, gain) => {
    find('.heat-mean').textContent = `mean ${mean.toFixed(2)} of 255`;
    find('.scale-end').textContent = `${Math.round(255 / gain)} or more, of 255`;
  });

  const lens = playerLens(root);
  const overlay = attentionOverlay(tiles.sparse.querySelector('.frame'), find('.look-bar'), sync, server);

  function show() {
    const frame = sync.position();
    root.dataset.playing = sync.playing;
    root.dataset.settled = !sync.settling;
    play.querySelector('span').textContent = sync.playing ? 'Pause' : 'Play';
    if (scrub.max !== String(sync.frames - 1)) scrub.max = sync.frames - 1;
    if (scrub.value !== String(frame)) scrub.value = frame;
    const place = `${frame + 1} / ${sync.frames} · ${(frame / sync.fps).toFixed(2)} s`;
    if (find('.place').textContent !== place) {
      find('.place').textContent = place;
      scrub.setAttribute('aria-valuetext', `frame ${frame + 1} of ${sync.frames}`);
    }
    if (!sync.playing) heat.refresh();
    overlay.draw();
  }

  function look() {
    const now = sync.active ? mode : 'side';
    if (now === 'blind' && root.dataset.mode !== 'blind') blind.start();
    if (now !== 'blind' && root.dataset.mode === 'blind') blind.end();
    root.dataset.mode = now;
    root.dataset.stacked = now === 'wipe' || now === 'heat';
    press(all('.modes button'), (button) => button.dataset.mode === now);
    heat.turn(now === 'heat');
    if (now !== 'side') overlay.clear();
  }

  function press(buttons, chosen) {
    buttons.forEach((button) => button.setAttribute('aria-pressed', chosen(button)));
  }

  function choose(selector, act) {
    const buttons = all(selector);
    buttons.forEach((button) =>
      button.addEventListener('click', () => {
        press(buttons, (other) => other === button);
        act(button.dataset);
      }),
    );
  }

  const toggle = () => (sync.playing ? sync.pause() : sync.play());

  function step(by) {
    if (sync.playing) sync.pause();
    sync.goTo(sync.position() + by);
  }

  choose('.modes button', (data) => {
    mode = data.mode;
    look();
  });
  choose('.speeds button', (data) => (sync.speed = Number(data.speed)));
  choose('.gains button', (data) => (heat.gain = Number(data.gain)));
  play.addEventListener('click', toggle);
  all('.step').forEach((button) => button.addEventListener('click', () => step(Number(button.dataset.step))));
  find('.loop').addEventListener('click', ({ currentTarget: button }) => {
    const on = button.getAttribute('aria-pressed') !== 'true';
    button.setAttribute('aria-pressed', on);
    sync.loop = on;
  });
  scrub.addEventListener('input', () => {
    const frame = Number(scrub.value);
    if (sync.playing) {
      resume = true;
      sync.pause();
    }
    sync.goTo(frame);
  });
  scrub.addEventListener('change', () => {
    if (resume) sync.play();
    resume = false;
  });
  find('.wipe-at').addEventListener('input', ({ target }) => {
    root.style.setProperty('--wipe', `${target.value}%`);
    target.setAttribute('aria-valuetext', `${target.value}% dense, ${100 - target.value}% sparse`);
  });
  all('.frame, .overlay.heat').forEach((frame) =>
    frame.addEventListener('click', (event) => {
      if (!sync.active) return;
      if (root.dataset.mode === 'side' && tiles.sparse.contains(frame) && root.dataset.inside === 'true') overlay.pick(event);
      else toggle();
    }),
  );

  root.addEventListener('keydown', (event) => {
    if (!sync.active || event.ctrlKey || event.metaKey || event.altKey) return;
    const range = event.target.matches('input');
    const button = event.target.matches('button, a, summary');
    if (event.shiftKey && !range && (overlay.on || lens.level > 1)) {
      const [x, y] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] || [0, 0];
      if (!x && !y) return;
      event.preventDefault();
      if (overlay.on) overlay.move([0, y, x]);
      else lens.move(10 * x, 10 * y);
      return;
    }
    const keys = { ',': () => step(-1), '.': () => step(1), z: lens.turn, f: lens.toggle, l: () => !find('.look-bar').hidden && find('.look-start').click() };
    if (overlay.on) keys.Escape = overlay.clear;
    all('.modes button').forEach((mode, i) => (keys[i + 1] = () => mode.click()));
    if (!range) Object.assign(keys, { ArrowLeft: keys[','], ArrowRight: keys['.'], Home: () => sync.goTo(0), End: () => step(sync.frames) });
    if (!button) keys[' '] = toggle;
    const act = keys[event.key] || keys[event.key.toLowerCase()];
    if (!act) return;
    event.preventDefault();
    act();
  });

  return {
    // Both clips go to a frame; false where there is no pair.
    goTo(frame) {
      if (!sync.active) return false;
      sync.goTo(frame);
      return true;
    },
    // clip: { fps, frames } of a pair made by one job, which starts from its first frame; null for no pair
    // key: of the pair's attention record, '' without one
    set(job, clip, calm, key) {
      root.dataset.inside = Boolean(clip && key);
      overlay.set(clip ? key : '');
      if (Boolean(clip) === sync.active && (!clip || job === opened)) return;
      clips.forEach((video) => {
        video.controls = !clip;
        video.loop = !clip;
      });
      root.dataset.pair = Boolean(clip);
      if (clip) root.tabIndex = 0;
      else root.removeAttribute('tabindex');
      if (!clip) sync.release();
      else if (job === opened) sync.retake();
      else {
        opened = job;
        heat.forget();
        if (root.dataset.mode === 'blind') blind.end();
        root.dataset.mode = 'side';
        sync.open(clip, !calm);
      }
      look();
    },
  };
}
