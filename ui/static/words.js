// The words that a small model knows, as buttons that build a prompt. What a prompt has of them is marked, however it
// came to be there. Texts are set through textContent only.
const TEXT = {
  title: (name, millions) => `${name} is a small model of ${millions} million parameters, and these are its words`,
  reads: (name, english) => `${name} reads: ${english}`,
  unknown: (name, words) => `Words that ${name} does not know: ${words}`,
  sentences: 'whole scenes',
};
const SHOWN = 12; // unknown words
const root = element.querySelector('.words');
const find = (selector) => root.querySelector(selector);
const field = () => document.querySelector('#prompt textarea');
let known = {};
let asked = 0;
let read = ''; // the English of a Chinese prompt, once the server has told

function words(name, phrases, act) {
  const group = document.createElement('div');
  group.setAttribute('role', 'group');
  group.setAttribute('aria-label', name);
  group.append(Object.assign(document.createElement('span'), { textContent: name }));
  for (const phrase of phrases) {
    const button = Object.assign(document.createElement('button'), { type: 'button', textContent: phrase });
    button.dataset.phrase = phrase; // which it writes, in whatever language it is shown
    button.addEventListener('click', () => act(phrase));
    group.append(button);
  }
  return group;
}

function draw() {
  known = props.value && props.value.groups ? props.value : {};
  root.hidden = !known.groups;
  if (root.hidden) {
    say('.words-read', '');
    say('.words-unknown', '');
    return;
  }
  find('.words-title').textContent = TEXT.title(known.name, known.millions);
  find('.words-about').textContent = known.about;
  find('.words-groups').replaceChildren(
    ...known.groups.map(([name, phrases]) => words(name, phrases, (phrase) => choose(name, phrase))),
    words(TEXT.sentences, known.sentences, write),
  );
  mark();
}

// The phrase of each group that a prompt has: the first, and of those that begin there the longest.
function parse(prompt) {
  const text = ` ${prompt.toLowerCase().replace(/[^\p{L}]+/gu, ' ')} `;
  const at = (phrase) => text.indexOf(` ${phrase} `);
  const first = (phrases) => phrases.filter((phrase) => at(phrase) >= 0).sort((a, b) => at(a) - at(b) || b.length - a.length)[0];
  return Object.fromEntries(known.groups.map(([name, phrases]) => [name, first(phrases) || '']));
}

function compose(chosen) {
  const filled = known.template.replace(/\{(\w+)\}/g, (_, name) => chosen[name]);
  return filled.replace(/ +/g, ' ').trim().replace(/\ba (?=[aeiou])/g, 'an ');
}

const any = (list) => list[Math.floor(Math.random() * list.length)];

function choose(name, phrase) {
  const chosen = parse(read || field().value);
  chosen[name] = chosen[name] === phrase && known.optional.includes(name) ? '' : phrase;
  for (const [other, phrases] of known.groups) if (!chosen[other] && !known.optional.includes(other)) chosen[other] = phrases[0];
  write(compose(chosen));
}

function surprise() {
  let chosen;
  do {
    const rolled = known.groups.map(([name, phrases]) => [name, known.optional.includes(name) && Math.random() < 0.5 ? '' : any(phrases)]);
    chosen = Object.fromEntries(rolled);
  } while (known.avoid.some((together) => together.every((phrase) => Object.values(chosen).includes(phrase))));
  write(Math.random() < 0.2 ? any(known.sentences) : compose(chosen));
}

// Like typing, so that the form knows it.
function write(prompt) {
  field().value = prompt;
  field().dispatchEvent(new Event('input', { bubbles: true }));
}

function mark() {
  const prompt = field()?.value || '';
  if (prompt !== checked) read = '';
  press(prompt);
  check(prompt);
}

function press(prompt) {
  const chosen = new Set([...Object.values(parse(read || prompt)), read || prompt]);
  for (const button of root.querySelectorAll('.words-groups button')) {
    button.setAttribute('aria-pressed', chosen.has(button.dataset.phrase));
  }
}

let checked = '';
async function check(prompt) {
  if (prompt === checked) return;
  checked = prompt;
  const mine = (asked += 1);
  await new Promise((wait) => setTimeout(wait, 400)); // until the word is typed
  if (mine !== asked) return;
  let told = { english: '', unknown: [] };
  try {
    // the lines of a long video are prompts of their own
    const long = document.querySelector('#task input:checked')?.value === 'long';
    const prompts = (long ? prompt.split('\n') : [prompt]).filter((text) => text.trim());
    if (prompts.length) told = await server.reading(prompts);
  } catch (error) {
    checked = ''; // no connection; asked again
  }
  if (mine !== asked) return;
  read = told.english;
  say('.words-read', read ? TEXT.reads(known.name, read) : '');
  say('.words-unknown', told.unknown.length ? TEXT.unknown(known.name, told.unknown.slice(0, SHOWN).join(', ')) : '');
  if (read) press(prompt);
}

function say(where, text) {
  const line = document.querySelector(`#reading ${where}`);
  if (line && line.textContent !== text) line.textContent = text;
}

// The prompt to begin with is in the language of the page, as long as nobody has written another.
function speak() {
  const chinese = document.documentElement.lang.startsWith('zh');
  const [other, wanted] = chinese ? [known.default, known.chinese] : [known.chinese, known.default];
  if (known.chinese && document.activeElement !== field() && field().value === other) write(wanted);
}

// A preset or a restored run fills the field without an event.
function watchField() {
  if (!element.isConnected) return;
  if (known.groups && field()) speak();
  if (known.groups && field() && field().value !== checked) mark();
  setTimeout(watchField, 500);
}

find('.words-surprise').addEventListener('click', (event) => {
  event.preventDefault(); // and leave the list as it is
  surprise();
});
if (matchMedia('(min-width: 901px)').matches) find('details').open = true;
document.addEventListener('input', (event) => known.groups && event.target === field() && mark());
watch('value', draw);
draw();
watchField();
