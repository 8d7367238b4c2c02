// Many small clips of equal length that loop together: the first one on screen leads, the others are
// hurried or slowed to its time. Clips that are out of sight do not play.
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
    const lead = ready[0];
    for (const video of ready) {
      if (!lead || video === lead || video.seeking) continue;
      const length = lead.duration;
      const ahead = ((video.currentTime - lead.currentTime + 1.5 * length) % length) - length / 2; // either may have begun anew
      // a small lag is made up by speed, because a seek takes longer than the lag
      if (Math.abs(ahead) > Math.max(0.3, 2 / fps) || (!playing && ahead)) video.currentTime = lead.currentTime;
      video.playbackRate = Math.abs(ahead) > 0.25 / fps ? 1 - Math.sign(ahead) * Math.min(0.5, 2 * Math.abs(ahead)) : 1;
    }
    setTimeout(align, 200);
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
