// A pane that shows a conversation. Everything said is put in as text, never as markup, so that every
// character is seen and nothing is fetched. What stays keeps its node: a selection in it stays, too, and
// the place that was scrolled to is left alone unless it is the end.
const title = element.querySelector('.pl-talk-title'), pane = element.querySelector('.pl-talk');
const END = 40; // pixels from the end that still count as the end

function parts(text) { // thinking is folded, with its marks
  const found = [];
  const close = text.indexOf('</think>'), open = text.indexOf('<think>');
  let at = 0;
  if (close >= 0 && (open < 0 || close < open)) { // the template asked with <think>
    at = close + '</think>'.length;
    found.push(['thinking', text.slice(0, at)]);
  }
  for (const one of text.slice(at).matchAll(/<think>[^]*?(?:<\/think>|$)|(?:(?!<think>)[^])+/g)) {
    found.push([one[0].startsWith('<think>') ? 'thinking' : 'plain', one[0]]);
  }
  return found;
}

function lines(value) { // role, text and a note of each message; tools and their calls as JSON
  const found = value.tools?.length ? [{role: 'tools', content: JSON.stringify(value.tools, null, 1), note: ''}] : [];
  for (const {role, content, note, tool_calls: calls} of value.messages) {
    if (content || !calls?.length) found.push({role, content: content || '', note: note || ''});
    if (calls?.length) found.push({role: `${role} calls`, content: JSON.stringify(calls, null, 1), note: ''});
  }
  return found;
}

function put(node, text) { // by appending where it grew: a selection survives that
  const held = node.firstChild;
  if (!held) node.append(text);
  else if (text.startsWith(held.data)) held.appendData(text.slice(held.data.length));
  else held.data = text;
}

function fold(part) {
  const details = document.createElement('details'), summary = document.createElement('summary');
  details.append(summary, part);
  return details;
}

function fill(said, wanted) {
  wanted.forEach(([kind, text], place) => {
    let node = said.children[place];
    if (node && node.dataset.kind !== kind) { node.remove(); node = null; }
    if (!node) {
      const span = document.createElement('span');
      node = kind === 'plain' ? span : fold(span);
      node.dataset.kind = kind;
      said.insertBefore(node, said.children[place] || null);
    }
    if (kind !== 'plain') {
      const label = kind === 'thinking' ? 'Thinking' : 'Tools';
      node.firstChild.dataset.label = `${label}, ${text.length.toLocaleString('en')} characters`;
    }
    put(kind === 'plain' ? node : node.lastChild, text);
  });
  while (said.children.length > wanted.length) said.lastChild.remove();
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // there is no clipboard on a page that came without https from another machine
    const area = document.createElement('textarea');
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
  }
  button.textContent = 'Copied';
  setTimeout(() => { button.textContent = 'Copy'; }, 1500);
}

function turn() {
  const node = document.createElement('article');
  const head = document.createElement('header'), role = document.createElement('b');
  const note = document.createElement('i'), button = document.createElement('button');
  const said = document.createElement('div');
  said.className = 'pl-said';
  button.type = 'button';
  button.textContent = 'Copy';
  button.addEventListener('click', () => copy(node.talkText, button));
  head.append(role, note, button);
  node.append(head, said);
  return node;
}

function draw() {
  const value = props.value || {title: '', messages: []}, messages = lines(value);
  const atEnd = pane.scrollHeight - pane.scrollTop - pane.clientHeight < END;
  const before = pane.children.length;
  title.textContent = value.title;
  pane.setAttribute('aria-label', value.title);
  if (pane.dataset.talk !== String(value.run)) pane.replaceChildren();
  pane.dataset.talk = value.run;
  messages.forEach((message, place) => {
    const node = pane.children[place] || pane.appendChild(turn());
    const [head, said] = node.children;
    node.className = `pl-turn pl-${message.role.split(' ')[0]}`;
    node.talkText = message.content;
    head.children[0].textContent = message.role;
    head.children[1].textContent = message.note;
    const answer = message.role === 'assistant' || message.role === 'continuation';
    fill(said, answer ? parts(message.content) : [[message.role === 'tools' ? 'tools' : 'plain', message.content]]);
  });
  while (pane.children.length > messages.length) pane.lastChild.remove();
  const asked = pane.children.length > before && messages.at(-1).role !== 'assistant';
  if (atEnd || asked) pane.scrollTop = pane.scrollHeight;
}

watch('value', draw);
draw();
