// Asks now and then whether a job of this visitor runs that this page does not follow: one started in another tab, or
// one that the page lost when its connection broke or its computer slept. `retry` lets the page take it up again. A page
// that follows a job without a stream, because another tab has it, takes a look with `peek`.
const PERIOD = 2000;
const PEEKS = 1000;
let behind = 0; // looks in a row that found the page behind, without a sign of life in between
let last = '';
let timer = 0;

async function look() {
  clearTimeout(timer);
  if (!element.isConnected) return;
  const mine = props.value || {};
  if (mine.ticket && document.visibilityState === 'visible') {
    try {
      compare(await server.look({ ticket: mine.ticket, job: mine.job }), props.value);
    } catch (error) {
      behind = 0; // no connection; the panel of readings says so
    }
  }
  timer = setTimeout(look, mine.streams === false ? PEEKS : PERIOD);
}

function compare(seen, now) {
  const other = seen.server !== now.server || seen.job !== now.job;
  if (now.streams === false && now.job && !other) {
    behind = 0;
    if (seen.version > now.version) trigger('peek');
    return;
  }
  const state = `${now.server} ${now.job} ${now.version}`;
  const missed = other || seen.version > now.version;
  behind = missed ? (state === last ? behind + 1 : 1) : 0;
  last = state;
  if (behind > 1) {
    behind = 0;
    trigger('retry');
  }
}

document.addEventListener('visibilitychange', look);
look();
