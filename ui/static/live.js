// Texts are set through textContent only, so that nothing the server says can become markup.
const title = element.querySelector('.live-title');
const note = element.querySelector('.live-note');
const rows = element.querySelector('.live-rows');
const age = element.querySelector('.live-age');

function draw(reading) {
  title.textContent = reading.title;
  note.textContent = reading.note || '';
  while (rows.children.length > reading.rows.length) rows.lastChild.remove();
  reading.rows.forEach((row, i) => {
    let item = rows.children[i];
    if (!item) {
      item = document.createElement('li');
      item.innerHTML = '<span class="name"></span><span class="text"></span><div class="meter"><i></i></div>';
      rows.append(item);
    }
    item.querySelector('.name').textContent = row.name;
    item.querySelector('.text').textContent = row.text;
    item.querySelector('.meter').hidden = row.share === null;
    item.querySelector('.meter i').style.width = `${Math.min(100, 100 * (row.share || 0))}%`;
  });
  age.textContent = 'live';
  age.classList.remove('stale');
  status(reading.worker.state, reading.worker.message);
}

function status(state, message) {
  const pill = document.querySelector('#header .pill');
  if (!pill) return;
  pill.dataset.state = state;
  pill.querySelector('.pill-text').textContent = message;
}

async function poll() {
  if (!element.isConnected) return;
  if (document.visibilityState === 'visible') {
    try {
      draw(await server.poll());
    } catch (error) {
      age.textContent = 'no connection';
      age.classList.add('stale');
      status('failed', 'No connection to the server; start it again, this page reconnects by itself');
    }
  }
  setTimeout(poll, 1000);
}
poll();
