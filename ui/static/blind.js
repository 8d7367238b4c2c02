// Which of two unnamed videos is better? Sides are drawn by lot for every round, names return with the vote, and
// the count of votes stays in this browser.
function blindTest(root, tiles) {
  const STORE = 'bsa-blind-votes';
  const NAMES = { dense: 'dense attention', sparse: 'block sparse attention' };
  const text = root.querySelector('.blind-text');
  const labels = Object.fromEntries(Object.entries(tiles).map(([arm, tile]) => [arm, tile.querySelector('video').getAttribute('aria-label')]));
  let votes = stored();
  let sides = { A: 'dense', B: 'sparse' };

  function stored() {
    const count = (value) => (Number.isInteger(value) && value > 0 ? value : 0);
    try {
      const { dense, sparse, same } = JSON.parse(localStorage.getItem(STORE)) || {};
      return { dense: count(dense), sparse: count(sparse), same: count(same) };
    } catch {
      return { dense: 0, sparse: 0, same: 0 };
    }
  }

  function store() {
    try {
      localStorage.setItem(STORE, JSON.stringify(votes));
    } catch {
      // a browser that keeps nothing still counts until the page is closed
    }
    tell();
  }

  function tell() {
    const { dense, sparse, same } = votes;
    const total = dense + sparse + same;
    root.querySelector('.tally-text').textContent = total
      ? `Your votes: ${dense} for dense, ${sparse} for sparse, ${same} no difference.`
      : 'No votes yet.';
    root.querySelector('.tally-clear').hidden = !total;
  }

  function name(hidden) {
    for (const [letter, arm] of Object.entries(sides)) {
      tiles[arm].querySelector('.letter').textContent = letter;
      tiles[arm].querySelector('video').setAttribute('aria-label', hidden ? `Video ${letter}` : labels[arm]);
    }
  }

  function start() {
    sides = Math.random() < 0.5 ? { A: 'dense', B: 'sparse' } : { A: 'sparse', B: 'dense' };
    root.dataset.blind = 'hidden';
    root.dataset.swap = sides.A === 'sparse';
    name(true);
    text.textContent = 'One of the two is dense, one is sparse. Which looks better?';
    tell();
  }

  function vote(choice) {
    if (root.dataset.blind !== 'hidden') return;
    votes[choice === 'same' ? 'same' : sides[choice]] += 1;
    root.dataset.blind = 'shown';
    name(false);
    const other = choice === 'A' ? 'B' : 'A';
    text.textContent =
      choice === 'same'
        ? `You saw no difference. A is ${NAMES[sides.A]}, B is ${NAMES[sides.B]}.`
        : `You chose ${choice}, ${NAMES[sides[choice]]}. ${other} is ${NAMES[sides[other]]}.`;
    store();
    root.querySelector('.again').focus();
  }

  root.querySelectorAll('[data-vote]').forEach((button) => button.addEventListener('click', () => vote(button.dataset.vote)));
  root.querySelector('.again').addEventListener('click', () => {
    start();
    root.querySelector('[data-vote="A"]').focus();
  });
  root.querySelector('.tally-clear').addEventListener('click', () => {
    votes = { dense: 0, sparse: 0, same: 0 };
    store();
  });

  return {
    start,
    end() {
      delete root.dataset.blind;
      delete root.dataset.swap;
      name(false);
    },
  };
}
