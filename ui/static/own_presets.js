// Settings under names, in this browser's storage: { name: settings }. Texts are set through textContent only.
const TEXT = { use: 'Use', remove: 'Delete', bad: 'This file has no presets', full: 'This browser keeps nothing; save them as a file' };
const KEY = 'bsa-presets';
const MOST = 100;
const root = element.querySelector('.own');
const find = (selector) => root.querySelector(selector);
const isPreset = (settings) => settings !== null && typeof settings === 'object' && !Array.isArray(settings);
const readable = (presets) => Object.fromEntries(Object.entries(isPreset(presets) ? presets : {}).filter(([, settings]) => isPreset(settings)).slice(0, MOST));
let presets = {};

try {
  presets = readable(JSON.parse(localStorage.getItem(KEY)));
} catch (error) {
  // nothing kept, or damaged
}

function keep() {
  draw();
  try {
    localStorage.setItem(KEY, JSON.stringify(presets));
    say('');
  } catch (error) {
    say(TEXT.full);
  }
}

const say = (text) => (find('.own-said').textContent = text);

function draw() {
  find('ul').replaceChildren(
    ...Object.entries(presets).map(([name, settings]) => {
      const item = document.createElement('li');
      const label = Object.assign(document.createElement('span'), { textContent: name, translate: false });
      const use = Object.assign(document.createElement('button'), { type: 'button', textContent: TEXT.use });
      const remove = Object.assign(document.createElement('button'), { type: 'button', textContent: TEXT.remove });
      use.setAttribute('aria-label', `${TEXT.use}: ${name}`);
      remove.setAttribute('aria-label', `${TEXT.remove}: ${name}`);
      use.addEventListener('click', () => trigger('select', { name, settings }));
      remove.addEventListener('click', () => {
        delete presets[name];
        keep();
      });
      item.append(label, use, remove);
      return item;
    }),
  );
  find('.own-export').disabled = !Object.keys(presets).length;
}

find('form').addEventListener('submit', (event) => {
  event.preventDefault();
  trigger('edit', { name: find('input[type="text"]').value });
});
find('.own-export').addEventListener('click', () => {
  const file = URL.createObjectURL(new Blob([JSON.stringify(presets, null, 1)], { type: 'application/json' }));
  Object.assign(document.createElement('a'), { href: file, download: 'bsa-presets.json' }).click();
  setTimeout(() => URL.revokeObjectURL(file), 60000);
});
find('.own-import input').addEventListener('change', async ({ target }) => {
  try {
    const found = readable(JSON.parse(await target.files[0].text()));
    if (!Object.keys(found).length) throw new Error(TEXT.bad);
    presets = readable({ ...found, ...presets });
    keep();
  } catch (error) {
    say(TEXT.bad);
  }
  target.value = '';
});
watch('value', () => {
  const { saved } = props.value || {};
  if (!saved) return;
  presets = { ...presets, [saved.name]: saved.settings };
  find('input[type="text"]').value = '';
  keep();
});
draw();
