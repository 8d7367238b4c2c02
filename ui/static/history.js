// One card per run. Texts are set through textContent only, pictures are data URLs that the server made.
const list = element.querySelector('.history-runs');
const ask = element.querySelector('.history-ask');
const find = (selector) => element.querySelector(selector);
const clock = () => new Intl.DateTimeFormat(document.documentElement.lang || undefined, { dateStyle: 'medium', timeStyle: 'short' });
let answer = () => {};
let drawn = '';
let first = ''; // the run that was chosen to be compared with another

function make(tag, name, text = '') {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text) node.textContent = text;
  return node;
}

function question(text, act) {
  find('#history-question').textContent = text;
  answer = act;
  ask.showModal();
}

function picture(run) {
  const open = make('button', 'history-open');
  open.type = 'button';
  open.disabled = !run.playable;
  open.setAttribute('aria-label', `Show this run: ${run.prompt || run.kind}`);
  run.posters.forEach(([arm, source]) => {
    if (!source.startsWith('data:image/jpeg;base64,')) return;
    const image = make('img');
    image.alt = '';
    image.dataset.arm = arm;
    image.src = source;
    open.append(image);
  });
  open.dataset.posters = open.childElementCount;
  if (!open.childElementCount) open.append(make('span', 'history-blank', run.live ? run.state : 'No video'));
  open.addEventListener('click', () => trigger('select', { job: run.job }));
  return open;
}

function action(name, text, label, act) {
  const button = make('button', name, text);
  button.type = 'button';
  button.setAttribute('aria-label', label);
  button.addEventListener('click', act);
  return button;
}

function card(run, shown) {
  const item = make('li', 'history-run');
  item.dataset.job = run.job;
  item.dataset.live = run.live;
  const about = make('div', 'history-about');
  const title = make('p', 'history-title');
  title.append(make('b', '', run.kind));
  if (run.rule) title.append(make('span', '', run.rule));
  if (run.job === shown) title.append(make('span', 'history-shown', 'shown above'));
  const prompt = make('p', 'history-prompt', run.prompt);
  prompt.translate = false;
  about.append(title, prompt);
  if (run.figures.length) {
    const figures = make('p', 'history-figures');
    run.figures.forEach((text) => figures.append(make('span', '', text)));
    about.append(figures);
  }
  if (run.state && !run.live) about.append(make('p', 'history-state', run.error ? `${run.state}: ${run.error}` : run.state));
  const when = make('time', '', clock().format(new Date(run.time * 1000)));
  when.dateTime = new Date(run.time * 1000).toISOString();
  const detail = make('p', 'history-detail');
  detail.append(when, run.detail ? ` · ${run.detail}` : '');
  about.append(detail);
  const actions = make('div', 'history-actions');
  const name = run.prompt || run.kind;
  if (run.settings) actions.append(action('', 'Use settings', `Use the settings of: ${name}`, () => trigger('edit', { job: run.job })));
  if (run.comparable) {
    const chosen = run.job === first;
    const text = chosen ? 'Chosen; now another' : first ? 'Compare with the chosen' : 'Compare';
    const button = action('history-compare', text, `${text}: ${name}`, () => compare(run.job));
    button.setAttribute('aria-pressed', chosen);
    actions.append(button);
  }
  run.arms.forEach((arm) => {
    const text = run.arms.length < 2 ? 'Go on from this' : `Go on from the ${arm} one`;
    actions.append(action('', text, `${text}: ${name}`, () => trigger('submit', { job: run.job, arm })));
  });
  if (!run.live) {
    const sure = () => question('Delete this run and its videos?', () => trigger('delete', { job: run.job }));
    actions.append(action('history-delete', 'Delete', `Delete: ${name}`, sure));
  }
  item.append(picture(run), about, actions);
  return item;
}

// The first press chooses a run, the second puts both on the stage; the same one again chooses none.
function compare(job) {
  if (first && first !== job) {
    trigger('apply', { jobs: [first, job] });
    first = '';
  } else first = first ? '' : job;
  drawn = '';
  draw();
}

function draw() {
  const view = props.value;
  if (!view || !view.runs || JSON.stringify(view) === drawn) return;
  drawn = JSON.stringify(view);
  const focused = document.activeElement && document.activeElement.closest('.history-run');
  const place = focused ? [...list.children].indexOf(focused) : -1;
  const which = focused ? [...focused.querySelectorAll('button')].indexOf(document.activeElement) : -1;
  list.replaceChildren(...view.runs.map((run) => card(run, view.shown)));
  if (place >= 0 && list.children.length) {
    const next = list.children[Math.min(place, list.children.length - 1)].querySelectorAll('button');
    (next[which] || next[0]).focus({ preventScroll: true });
  }
  const made = view.runs.filter((run) => !run.live).length;
  find('.history-empty').hidden = view.runs.length > 0;
  find('.history-count').textContent = made ? `${made}${view.more ? ' newest' : ''} ${made === 1 ? 'run' : 'runs'}, only yours` : '';
  find('.history-clear').hidden = made === 0;
  find('.history-more').hidden = !view.more;
}

find('.history-clear').addEventListener('click', () =>
  question('Delete all your runs and their videos? This cannot be undone.', () => trigger('clear')),
);
find('.history-more').addEventListener('click', () => trigger('expand'));
find('.history-no').addEventListener('click', () => ask.close());
find('.history-yes').addEventListener('click', () => {
  ask.close();
  answer();
});
addEventListener('languagechange', () => {
  drawn = '';
  if (element.isConnected) draw();
});
watch('value', draw);
draw();
