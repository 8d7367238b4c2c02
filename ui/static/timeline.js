// The segments of a long video, or the windows in which one is refined: what is finished can be looked at while the rest
// is made. A press on its picture goes to that place of the whole, or plays it here while there is no whole. `ask` gets
// what the next run is to keep, or that it is to refine the whole; `play` goes to a frame and tells whether it could.
// Texts are set through textContent only.
const PARTS = {
  segment: { title: (number) => `Segment ${number}`, play: (number, arm) => `Play segment ${number}, ${arm}`, all: 'Segments of the long video' },
  window: { title: (number) => `Window ${number}`, play: (number, arm) => `Play window ${number}, ${arm}`, all: 'Windows in which the long video is refined' },
};

function timeline(root, ask, play) {
  const list = root.querySelector('ol');
  let drawn = '';
  let view = null;

  function make(tag, name, text = '') {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text) node.textContent = text;
    return node;
  }

  function action(text, label, act) {
    const button = make('button', '', text);
    button.type = 'button';
    button.setAttribute('aria-label', label);
    button.addEventListener('click', act);
    return button;
  }

  function picture(arm, files, segment) {
    const open = make('button', 'timeline-open');
    open.type = 'button';
    open.dataset.arm = arm;
    open.setAttribute('aria-label', PARTS[view.part].play(segment.number, arm));
    open.append(Object.assign(make('img'), { src: files.picture.url, alt: '' }));
    open.addEventListener('click', () => {
      if (play(segment.frame)) return;
      const clip = Object.assign(make('video'), { src: files.clip.url, muted: true, loop: true, playsInline: true, controls: true });
      open.replaceWith(clip);
      clip.play().catch(() => {});
    });
    return open;
  }

  function card(segment, count) {
    const item = make('li');
    item.dataset.state = segment.state || 'done';
    const shown = make('div', 'timeline-pictures');
    const arms = Object.entries(segment.arms);
    arms.forEach(([arm, files]) => shown.append(picture(arm, files, segment)));
    if (!arms.length) shown.append(make('span', 'timeline-blank', segment.state));
    const title = make('p', 'timeline-title');
    title.append(make('b', '', PARTS[view.part].title(segment.number)), make('span', '', segment.time));
    if (segment.kept) title.append(make('span', '', 'kept'));
    const prompt = make('p', 'timeline-prompt', segment.prompt);
    prompt.translate = false;
    item.append(shown, title, prompt);
    if (view.over && arms.length && view.part === 'segment') {
      const before = segment.number - 1;
      const again = action('Redo from here', `Redo from segment ${segment.number}`, () => ask({ kept: before, segments: count }));
      const actions = make('div', 'timeline-actions');
      actions.append(again);
      if (before) actions.append(action('Drop from here', `Drop from segment ${segment.number}`, () => ask({ kept: before, segments: before })));
      item.append(actions);
    }
    return item;
  }

  root.querySelector('.timeline-add').addEventListener('click', () => {
    const made = view.segments.filter((segment) => Object.keys(segment.arms).length).length;
    const all = made === view.segments.length;
    ask({ kept: made, segments: all ? made + 1 : view.segments.length });
  });
  const refine = root.querySelector('.timeline-refine');
  refine.addEventListener('click', () => ask({ refine: true }));

  return {
    draw(now, job) {
      root.hidden = !now;
      const state = JSON.stringify([now, job]);
      if (!now || state === drawn) return;
      drawn = state;
      view = now;
      const made = now.segments.filter((segment) => Object.keys(segment.arms).length).length;
      list.replaceChildren(...now.segments.map((segment) => card(segment, now.segments.length)));
      const all = made === now.segments.length;
      const windows = now.part === 'window';
      root.setAttribute('aria-label', PARTS[now.part].all);
      root.querySelector('.timeline-end').hidden = !now.over || !made || (all && windows);
      root.querySelector('.timeline-add').textContent = all ? 'Add a segment' : 'Make the rest';
      refine.hidden = !all || windows;
      refine.disabled = Boolean(now.lacks);
      const lacks = root.querySelector('.timeline-lacks');
      lacks.hidden = refine.hidden || !now.lacks;
      lacks.textContent = now.lacks || '';
    },
  };
}
