// The page's conversations with its runs. They live here: the page decides at once and in one place what is
// asked and what is shown, and the studio only answers. An answer may still be on its way when the page has
// moved on (another run, Clear): it carries its question's token, and nothing of it is taken then.
"use strict";
window.plumbline.chat = (() => {
  const { keep, taken, token } = window.plumbline;
  const before = taken("talks"); // of this tab, until it was loaded again
  let talks = before?.talks ?? {}; // by run
  let shown = null; // the run that is shown, and the titles of both panes
  let asking = null; // the question that the studio answers, with the conversation before it
  let next = null; // a question that waits: for the end of an answer that was left, or for the first run
  let ready = false; // what was kept is on the page again

  const warning = (text) => `<div class="pl-box pl-warning" role="status">! ${text}</div>`;
  const joined = (question, prompt) => (question && prompt.trim() ? `${question}\n${prompt}` : question || prompt);

  // Conversations and box as they are without the questions that have no answer yet.
  const settled = (prompt) => {
    const kept = { ...talks };
    if (next) prompt = joined(next.prompt, prompt);
    if (asking && !asking.left && !asking.answered) {
      if (asking.talk) kept[asking.run] = asking.talk;
      else delete kept[asking.run];
      prompt = joined(asking.prompt, prompt);
    }
    return { talks: kept, prompt };
  };

  // Ends what was asked; a question without an answer goes back into the box.
  // Returns what then stands there, and the answer to end.
  const leave = (prompt) => {
    const halt = asking && !asking.left ? asking.token : undefined;
    const kept = settled(prompt);
    talks = kept.talks;
    next = null;
    if (asking) asking.left = true;
    return [kept.prompt, halt];
  };

  const send = () => {
    if (!next || !shown || asking) return undefined;
    asking = { token: token(), run: shown.run, prompt: next.prompt, talk: talks[shown.run] ?? null };
    next = null;
    const { run, prompt, talk } = asking;
    return { token: asking.token, run, prompt, talk };
  };

  const remember = (prompt) => {
    if (ready) keep("talks", settled(prompt));
  };

  const pane = (side) => {
    if (!shown) return undefined;
    const talk = talks[shown.run];
    return { run: shown.run, title: shown[side], tools: talk?.tools ?? null, messages: talk?.[side] ?? [] };
  };

  // Both panes, system prompt, box, notice, a question for the studio, an answer to end. Undefined stays.
  const drawn = (old, prompt, { system, notice, question, halt } = {}) => {
    remember(prompt);
    return [pane("base"), pane("adapter"), system, prompt === old ? undefined : prompt, notice, question, halt];
  };

  return {
    restore: (old) => {
      ready = true;
      return drawn(old, before?.prompt ?? old);
    },
    typed: (prompt) => {
      remember(prompt);
      return [];
    },
    // The run that is shown, whenever it is another one or its state changed.
    open: (titles, old) => {
      if (!titles) return [];
      const first = shown === null, other = first || titles.run !== shown.run;
      const [prompt, halt] = other && !first ? leave(old) : [old, undefined];
      shown = titles;
      const system = other ? (talks[shown.run]?.system ?? (first ? undefined : "")) : undefined;
      return drawn(old, prompt, { system, halt, question: send() });
    },
    ask: (old) => {
      if (next || (asking && !asking.left)) {
        return drawn(old, old, { notice: warning("This page is being answered. Wait for the answer, or stop it.") });
      }
      next = { prompt: old };
      return drawn(old, "", { notice: "", question: send() });
    },
    hear: (said, old) => {
      if (!asking || said?.token !== asking.token) return [];
      let prompt = old, notice;
      if (!asking.left) {
        if (said.talk) talks[asking.run] = said.talk;
        else delete talks[asking.run];
        asking.answered = said.talk?.pending === null;
        prompt = joined(said.back, old);
        notice = said.notice;
      }
      if (said.over) asking = null;
      return drawn(old, prompt, { notice, question: send() });
    },
    // The connection broke in between, or the studio refused to listen.
    lost: (old) => {
      if (!asking) return [];
      const { left } = asking;
      const [prompt] = leave(old);
      asking = null;
      return drawn(old, prompt, { notice: left ? undefined : warning("The answer was lost on its way. Ask again.") });
    },
    stop: (old) => {
      if (asking && !asking.left) return drawn(old, old, { halt: asking.token });
      return drawn(old, ...leave(old).slice(0, 1));
    },
    clear: (old) => {
      const [prompt, halt] = leave(old);
      if (shown) delete talks[shown.run];
      return drawn(old, prompt, { halt });
    },
    // A held-out row's conversation up to its last question, and that question in the box.
    sample: (number, samples, old) => {
      const one = samples?.rows[number];
      if (!one || samples.run !== shown?.run) return [];
      const [, halt] = leave(old);
      talks[shown.run] = one.talk;
      return drawn(old, one.question, { system: one.talk.system, notice: "", halt });
    },
  };
})();
