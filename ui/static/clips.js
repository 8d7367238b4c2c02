// Many small clips of equal length that loop together: the first one on screen leads, the others are set to its time
// when they are off by more than a frame. Clips that are out of sight do not play.
function syncedClips(root, calm) {
  const seen = new Set();
  let playing = !calm;
  let fps = 15;

  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) seen.add(target);
      else seen.delete(target);
    }
    run();
  });

  function run() {
    for (const video of root.querySelectorAll('video')) {
      if (playing && seen.has(video)) video.play().catch(() => {});
      else video.pause();
    }
  }

  function align() {
    if (!root.isConnected) return;
    const ready = [...seen].filter((video) => video.isConnected && video.readyState >= 2);
    const lead = ready.find((video) => !video.seeking);
    for (const video of ready) {
      if (!lead || video === lead || video.seeking) continue;
      const apart = Math.abs(video.currentTime - lead.currentTime);
      const around = Math.min(apart, Math.abs(lead.duration - apart)); // one may have begun anew already
      if (around > 1 / fps) video.currentTime = lead.currentTime;
    }
    setTimeout(align, 250);
  }
  align();

  return {
    set fps(value) { fps = value; },
    get playing() { return playing; },
    add(video) {
      watcher.observe(video);
    },
    toggle() {
      playing = !playing;
      run();
    },
  };
}
