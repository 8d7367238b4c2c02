// Copies the code and shows it, so that it can be selected by hand where a browser does not allow copying.
const box = element.querySelector('.code');
const said = element.querySelector('.code-said');
const shown = element.querySelector('pre');
const buttons = [...element.querySelectorAll('[data-code]')];
const names = { cli: 'Command copied', python: 'Program copied' };

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text); // only on https and on localhost
    return true;
  } catch (error) {
    const selection = getSelection();
    selection.selectAllChildren(shown);
    const done = document.execCommand('copy');
    if (done) selection.removeAllRanges();
    return done;
  }
}

buttons.forEach((button) =>
  button.addEventListener('click', async () => {
    const kind = button.dataset.code;
    const text = props.value[kind];
    shown.hidden = !text;
    shown.textContent = text || '';
    if (!text) said.textContent = props.value.why || '';
    else said.textContent = (await copy(text)) ? names[kind] : 'Select the code and copy it';
  }),
);

function draw() {
  box.hidden = !(props.value && props.value.python);
  shown.hidden = true;
  said.textContent = '';
}
watch('value', draw);
draw();
