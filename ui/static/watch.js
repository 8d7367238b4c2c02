// Asks now and then whether a job of this visitor runs that this page does not follow: one started in another tab, or
// one that the page lost when its connection broke or its computer slept. `retry` lets the page take it up again.
const PERIOD = 2000;
let behind = 0; // looks in a row that found the page behind, without a sign of life in between
let last = '';
let timer = 0;

async function look() {
  clearTimeout(timer);
  if (!element.isConnected) return;
  const mine = props.value || {};
  if (mine.ticket && document.visibilityState === 'visible') {
    try {
      const seen = await server.look({ ticket: mine.ticket, job: mine.job });
      const now = props.value;
      const state = `${now.server} ${now.job} ${now.version}`;
      const missed = seen.server !== now.server || seen.job !== now.job || seen.version > now.version;
      behind = missed ? (state === last ? behind + 1 : 1) : 0;
      last = state;
      if (behind > 1) {
        behind = 0;
        trigger('retry');
      }
    } catch (error) {
      behind = 0; // no connection; the panel of readings says so
    }
  }
  timer = setTimeout(look, PERIOD);
}
document.addEventListener('visibilitychange', look);
look();
