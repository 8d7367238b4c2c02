// The visitor's jobs that run and wait. The list is asked for now and then, and after each press. Texts are set through
// textContent only.
const TEXT = { up: 'Earlier', down: 'Later', remove: 'Remove', stop: 'Stop' };
const ICONS = { up: 'm6 14 6-6 6 6', down: 'm6 10 6 6 6-6', remove: 'M6 6l12 12M18 6 6 18', stop: 'M6 6l12 12M18 6 6 18' };
const PERIOD = 1500;
const IDLE = 4000; // between looks at an empty queue
const root = element.querySelector('.queue');
const list = root.querySelector('ol');
let timer = 0;
let asked = 0;

function button(kind, what, act, off) {
  const made = document.createElement('button');
  made.type = 'button';
  made.disabled = off;
  made.setAttribute('aria-label', `${TEXT[kind]}: ${what}`);
  made.title = TEXT[kind];
  made.dataset.act = kind;
  made.innerHTML = `<svg viewBox="0 0 24 24" aria-hidden="true"><path d="${ICONS[kind]}"/></svg>`;
  made.addEventListener('click', act);
  return made;
}

function draw(jobs) {
  root.hidden = jobs.length < 2; // of one alone the tiles say all
  const focus = document.activeElement?.closest('.queue li') ? { job: document.activeElement.closest('li').dataset.job, act: document.activeElement.dataset.act } : null;
  const waiting = jobs.filter((job) => !job.running);
  list.replaceChildren(
    ...jobs.map((job) => {
      const item = document.createElement('li');
      item.dataset.job = job.job;
      item.dataset.running = job.running;
      const text = document.createElement('p');
      text.append(...[['b', job.what], ['span', job.detail], ['small', job.state]].map(([tag, words]) => Object.assign(document.createElement(tag), { textContent: words })));
      text.querySelector('b').translate = false;
      const place = waiting.indexOf(job);
      const ask = (name, more) => () => tell(name, { job: job.job, ...more });
      const buttons = job.running
        ? [button('stop', job.what, ask('remove'), false)]
        : [
            button('up', job.what, ask('move', { by: -1 }), place === 0),
            button('down', job.what, ask('move', { by: 1 }), place === waiting.length - 1),
            button('remove', job.what, ask('remove'), false),
          ];
      item.append(text, ...buttons);
      return item;
    }),
  );
  if (focus) list.querySelector(`li[data-job="${focus.job}"] [data-act="${focus.act}"]`)?.focus();
}

async function tell(name, ask = {}) {
  clearTimeout(timer);
  if (!element.isConnected) return;
  const { ticket } = props.value || {};
  let jobs = [];
  if (ticket && document.visibilityState === 'visible') {
    const mine = (asked += 1);
    try {
      jobs = await server[name]({ ticket, ...ask });
      if (mine === asked) draw(jobs);
    } catch (error) {
      // no connection; the line of memory says so
    }
  }
  clearTimeout(timer);
  timer = setTimeout(() => tell('look'), jobs.length ? PERIOD : IDLE);
}

watch('value', () => tell('look'));
document.addEventListener('visibilitychange', () => tell('look'));
document.addEventListener('click', (event) => event.target.closest('#generate, #batch_run') && setTimeout(() => tell('look'), 400));
tell('look');
