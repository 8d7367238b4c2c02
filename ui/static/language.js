// The page in two languages. Everything is written in English, on the server, in Gradio and in the scripts; this puts
// Chinese in its place as it appears, before it is painted, and back again. So a switch needs no reload and loses
// nothing, what was written an hour ago follows too, and what has no translation stays English.
// catalogue: { English: Chinese }. {#a} stands for a number, {=a} for something kept as it is (a name, a prompt), and
// {a} for anything, which is translated in turn.
(function speak(catalogue) {
  const KEY = 'longcat-bsa-language';
  const LANGUAGES = { en: 'en', zh: 'zh-CN' };
  const FOREIGN = '[translate="no"], .filename, textarea, pre, code, script, style';
  const ATTRIBUTES = ['aria-label', 'aria-valuetext', 'title', 'placeholder', 'alt'];
  const LONGEST = 1000;
  const WORD = /[A-Za-z]{2}|\d h\b/; // what may be English: two letters, or an hour
  const HOLE = /\{([#=]?)(\w+)\}/g;
  const CHINESE = /[\u4e00-\u9fff]/;
  // Where a text that is not in the catalogue as a whole may be cut, and what then stands between its parts.
  const CUTS = [[' · ', ' · '], [/(?<=[.!?…]) +/, ''], ['; ', '；'], [': ', '：'], [', ', '，']];

  const plain = (text) => text.replace(/\.$/, '');
  const small = (text) => text.slice(0, 1).toLowerCase() + text.slice(1);
  const exact = new Map();
  const patterns = [];
  for (const [english, chinese] of Object.entries(catalogue)) {
    const key = small(plain(english));
    const said = chinese.replace(/。$/, '');
    if (!key.match(HOLE)) exact.set(key, said);
    else {
      const names = [];
      const source = key.split(HOLE).map((part, i) => {
        if (i % 3 === 0) return part.replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&');
        if (i % 3 === 1) return '';
        names.push(part);
        const kind = key.split(HOLE)[i - 1];
        return kind === '#' ? '([-+\\d.,∞]+(?:[x/][\\d.]+)*%?)' : '(.+?)';
      });
      const kept = new Set([...key.matchAll(HOLE)].filter((hole) => hole[1] === '=').map((hole) => hole[2]));
      patterns.push({ test: new RegExp(`^${source.join('')}$`, 's'), names, kept, said, weight: key.replace(HOLE, '').length });
    }
  }
  // Gradio has its own words in the browser's language already, before anybody chose another one here.
  const gradios = new Map(Object.entries(catalogue).map(([english, chinese]) => [chinese, english]));
  patterns.sort((a, b) => b.weight - a.weight); // the most telling first

  const known = new Map();
  function whole(text) {
    const stop = /[^.]\.$/.test(text) ? '。' : '';
    const key = small(plain(text));
    if (exact.has(key)) return exact.get(key) + stop;
    for (const { test, names, kept, said } of patterns) {
      const found = test.exec(key);
      if (!found) continue;
      if (test.source.startsWith('^(')) found[1] = text.slice(0, 1) + found[1].slice(1); // a name keeps its first letter
      const values = new Map(names.map((name, i) => [name, kept.has(name) ? found[i + 1] : translate(found[i + 1])]));
      return said.replace(HOLE, (_, kind, name) => values.get(name)) + stop;
    }
    return null;
  }

  function inParts(text) {
    for (const [cut, join] of CUTS) {
      const parts = text.split(cut);
      if (parts.length > 1) {
        const said = parts.map(translate);
        return said.some((part, i) => part !== parts[i]) ? said.join(join) : text;
      }
    }
    return text;
  }

  function translate(text) {
    if (text.length > LONGEST || !WORD.test(text)) return text;
    if (!known.has(text)) {
      if (known.size > 4000) known.clear();
      known.set(text, whole(text) ?? inParts(text));
    }
    return known.get(text);
  }

  // What was there and what was put in its place, by text node and by element and attribute.
  const texts = new WeakMap();
  const attributes = new WeakMap();
  const choices = new WeakMap();
  let language = 'en';

  function say(english) {
    const [, before, text, after] = /^(\s*(?:· )?)([^]*?)(\s*)$/.exec(english);
    if (language === 'zh') return before + translate(text) + after;
    return CHINESE.test(text) && gradios.has(text) ? before + gradios.get(text) + after : english;
  }

  function visitText(node) {
    if (!node.parentElement || node.parentElement.closest(FOREIGN)) return;
    const last = texts.get(node);
    const english = last && last.shown === node.nodeValue ? last.english : node.nodeValue;
    const shown = say(english);
    texts.set(node, { english, shown });
    if (node.nodeValue !== shown) node.nodeValue = shown;
  }

  function visitAttributes(element, names = ATTRIBUTES) {
    if (element.closest('[translate="no"]')) return;
    for (const name of names) {
      const now = element.getAttribute(name);
      if (!now) continue;
      const seen = attributes.get(element) || {};
      const english = seen[name] && seen[name].shown === now ? seen[name].english : now;
      const shown = say(english);
      attributes.set(element, { ...seen, [name]: { english, shown } });
      if (now !== shown) element.setAttribute(name, shown);
    }
  }

  function visit(root) {
    if (root.nodeType === Node.TEXT_NODE) return visitText(root);
    if (root.nodeType !== Node.ELEMENT_NODE) return;
    visitAttributes(root);
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_ELEMENT | NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      if (walker.currentNode.nodeType === Node.TEXT_NODE) visitText(walker.currentNode);
      else visitAttributes(walker.currentNode);
    }
  }

  // A dropdown shows its choice as the value of a field, which is nothing that changes the document.
  function visitChoices() {
    for (const field of document.querySelectorAll('input[role="listbox"], input[role="combobox"]')) {
      if (field === document.activeElement) continue;
      const last = choices.get(field);
      const english = last && last.shown === field.value ? last.english : field.value;
      const shown = say(english);
      choices.set(field, { english, shown });
      if (field.value !== shown) field.value = shown;
    }
  }

  function tell() {
    visitChoices();
    const root = document.documentElement;
    if (root.lang !== LANGUAGES[language]) root.lang = LANGUAGES[language];
    for (const button of document.querySelectorAll('button[data-language]')) {
      button.setAttribute('aria-pressed', button.dataset.language === language);
    }
  }

  function wanted() {
    let kept = null;
    try {
      kept = localStorage.getItem(KEY);
    } catch (error) {
      // a browser that stores nothing asks its own language each time
    }
    if (Object.hasOwn(LANGUAGES, kept)) return kept;
    const first = (navigator.languages || [navigator.language]).find((name) => /^(zh|en)\b/i.test(name)) || 'en';
    return first.slice(0, 2).toLowerCase();
  }

  function turn(to) {
    language = to;
    tell();
    visit(document.documentElement);
    dispatchEvent(new Event('languagechange'));
    dispatchEvent(new Event('resize')); // tabs count again how many of them have room
  }

  new MutationObserver((changes) => {
    for (const { type, target, attributeName, addedNodes } of changes) {
      if (type === 'characterData') visitText(target);
      else if (type === 'attributes' && attributeName !== 'lang') visitAttributes(target, [attributeName]);
      else addedNodes.forEach(visit);
    }
    tell();
  }).observe(document, { subtree: true, childList: true, characterData: true, attributes: true, attributeFilter: [...ATTRIBUTES, 'lang'] });

  document.addEventListener('click', (event) => {
    const button = event.target.closest('button[data-language]');
    if (!button) return;
    try {
      localStorage.setItem(KEY, button.dataset.language);
    } catch (error) {
      // the choice then lasts as long as the page
    }
    turn(button.dataset.language);
  });
  document.addEventListener('focusout', () => setTimeout(visitChoices));
  addEventListener('storage', (event) => event.key === KEY && turn(wanted())); // another tab was switched
  turn(wanted());
})(/* catalogue */);
