// Pictures to begin with, as buttons. A press asks the server to put one into the form, with a prompt that goes on from
// it. What they show was drawn from data URLs that the server made.
const group = element.querySelector('.pictures');

function draw() {
  const shown = (props.value && props.value.pictures) || [];
  group.hidden = !shown.length;
  group.replaceChildren(
    ...shown.map(({ name, prompt, source }) => {
      const button = document.createElement('button');
      button.type = 'button';
      button.title = prompt;
      button.append(Object.assign(document.createElement('img'), { src: source, alt: prompt }));
      button.addEventListener('click', () => trigger('select', { name }));
      return button;
    }),
  );
}

watch('value', draw);
draw();
