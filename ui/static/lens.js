// Zooms into both clips at one place, and gives the player the whole screen.
function playerLens(root) {
  const LEVELS = [1, 2, 4];
  const zoom = root.querySelector('.zoom');
  const full = root.querySelector('.full');
  let level = 1;
  let at = [50, 50]; // the point that stays where it is, in percent

  function apply() {
    root.dataset.zoom = level;
    root.style.setProperty('--zoom', level);
    root.style.setProperty('--zoom-at', `${at[0]}% ${at[1]}%`);
    zoom.querySelector('span').textContent = `Zoom ${level}×`;
  }

  function turn() {
    level = LEVELS[(LEVELS.indexOf(level) + 1) % LEVELS.length];
    if (level === 1) at = [50, 50];
    apply();
  }

  function move(x, y) {
    at = [at[0] + x, at[1] + y].map((value) => Math.min(100, Math.max(0, value)));
    apply();
  }

  function toggle() {
    if (document.fullscreenElement) document.exitFullscreen();
    else root.requestFullscreen?.().catch(() => {});
  }

  for (const frame of root.querySelectorAll('.frame, .overlay.heat')) {
    frame.addEventListener('pointermove', (event) => {
      if (level === 1) return;
      const box = frame.getBoundingClientRect();
      at = [(100 * (event.clientX - box.left)) / box.width, (100 * (event.clientY - box.top)) / box.height];
      apply();
    });
  }
  zoom.addEventListener('click', turn);
  full.addEventListener('click', toggle);
  full.hidden = !document.fullscreenEnabled;
  root.addEventListener('fullscreenchange', () => full.setAttribute('aria-pressed', document.fullscreenElement === root));

  return {
    turn,
    toggle,
    move,
    get level() { return level; },
  };
}
