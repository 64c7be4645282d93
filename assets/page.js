// What the page does by itself: it asks the studio what changed, waits when there is no connection, and
// keeps what was typed over a reload. Everything kept lies in this tab's own storage (sessionStorage): two
// tabs do not mix, and closing the tab forgets it. Nothing that is a secret is ever given to `keep`.
"use strict";
window.plumbline = (() => {
  const PAUSE = 2000; // milliseconds between two tries
  const root = () => window.gradio_config.root.replace(/\/+$/, "");
  const plainFetch = window.fetch.bind(window);
  let seen = ""; // what the page shows, as the studio's last answer named it
  let shown = null; // the run that it shows it of
  let told = "";
  let asked = 0; // requests so far
  let waiting = false; // the timer's own request is on its way
  let leaving = false; // the page is being loaded again
  const ready = new Set(); // what was kept and is on the page again
  let returning = null; // the promise of a connection, while there is none
  let returns = 0;

  const banner = (text) => {
    let box = document.getElementById("connection");
    if (!box) {
      box = document.createElement("div");
      box.id = "connection";
      box.className = "pl-box pl-warning";
      box.setAttribute("role", "status");
      document.body.append(box);
    }
    box.hidden = !text;
    if (text) box.textContent = `! ${text}`;
  };

  // A proxy answers in the place of a studio that is not there; the studio's own 503 (busy) is JSON.
  const absent = (answer) =>
    [502, 504].includes(answer.status) ||
    (answer.status === 503 && !(answer.headers.get("content-type") || "").includes("json"));

  const sleep = (time) => new Promise((done) => setTimeout(done, time));

  // Resolves when the studio answers again. One that was started anew knows nothing of this page, and may
  // be another version: the page is loaded again, once, with what was kept.
  const back = () => {
    returning ??= (async () => {
      banner(
        `No connection to the studio since ${new Date().toLocaleTimeString()}. ` +
          "This page tries again every 2 seconds and keeps what you typed."
      );
      for (;;) {
        await sleep(PAUSE);
        try {
          const answer = await plainFetch(`${root()}/gradio_api/app_id`, { cache: "no-store" });
          if (!answer.ok) continue;
          same((await answer.json()).app_id);
          break;
        } catch {
          continue;
        }
      }
      banner("");
      returns += 1;
      returning = null;
    })();
    return returning;
  };

  const same = (server) => {
    if (String(server) === String(window.gradio_config.app_id)) return;
    if (!leaving) location.reload();
    leaving = true;
    throw new Error("the studio was started anew");
  };

  // Gradio gives a page up at the first request that fails. Such a request waits for the connection and is
  // sent again: clicks that start something carry a token, so that the second of two does nothing.
  const patient = async (input, options) => {
    for (;;) {
      try {
        const answer = await plainFetch(input instanceof Request ? input.clone() : input, options);
        if (!absent(answer)) return answer;
      } catch (error) {
        if (error.name === "AbortError") throw error;
      }
      await back();
    }
  };

  // The stream of answers cannot be joined again: what was on its way ends with an error, and the page goes on.
  const mended = (answer) => {
    const reader = answer.body.getReader();
    const decoder = new TextDecoder();
    let tail = "";
    const body = new ReadableStream({
      async pull(out) {
        let cut = false;
        try {
          const { done, value } = await reader.read();
          if (!done) {
            tail = (tail + decoder.decode(value, { stream: true })).slice(-200);
            out.enqueue(value);
            return;
          }
          cut = !tail.includes("close_stream");
        } catch (error) {
          if (error.name === "AbortError") return out.close(); // the page itself has ended it: no fault
          cut = true;
        }
        if (cut) {
          await back();
          const ends = [{ msg: "unexpected_error", message: "The connection was lost." }, { msg: "close_stream" }];
          for (const end of ends) out.enqueue(new TextEncoder().encode(`data: ${JSON.stringify(end)}\n\n`));
        }
        out.close();
      },
      cancel: (reason) => reader.cancel(reason),
    });
    return new Response(body, { status: answer.status, headers: answer.headers });
  };

  window.fetch = async (input, options) => {
    const path = new URL(input instanceof Request ? input.url : input, document.baseURI).pathname;
    if (!/\/gradio_api\/(run|queue)\//.test(path)) return plainFetch(input, options);
    const stream = path.endsWith("/queue/data");
    try {
      const answer = await patient(input, options);
      return stream && answer.ok && answer.body ? mended(answer) : answer;
    } catch (error) {
      if (stream && error.name === "AbortError") return new Response("");
      throw error;
    }
  };

  // What changed since the last answer, as updates of the page's outputs: the run, what to tell of views that
  // failed, how often the connection came back, and then the views. What is left out stays as it is.
  const tick = async (run, paused, timer) => {
    if (timer && (waiting || returning)) return [];
    const number = ++asked;
    if (timer) waiting = true;
    const query = new URLSearchParams({ seen, paused: Boolean(paused), now: !timer });
    if (run !== null && run !== undefined) query.set("run", run);
    if (shown !== null) query.set("shown", shown);
    let answer;
    try {
      answer = await (await patient(`${root()}/live?${query}`, { cache: "no-store" })).json();
      same(answer.server);
    } catch (error) {
      console.debug(error);
      return [];
    } finally {
      if (timer) waiting = false;
    }
    if (number !== asked) return []; // a later request is on its way and draws this as well
    const updates = [];
    if (answer.run !== run) updates[0] = answer.run;
    if (answer.told !== told) {
      updates[1] = { __type__: "update", value: answer.told, visible: Boolean(answer.told) };
    }
    updates[2] = returns;
    for (const [output, value] of answer.drawn) updates[3 + output] = value;
    [seen, shown, told] = [answer.seen, answer.run, answer.told];
    keep("run", answer.run);
    return updates;
  };

  const keep = (name, value) => {
    try {
      sessionStorage.setItem(`plumbline.${name}`, JSON.stringify(value));
    } catch (error) {
      console.debug(error); // full, or switched off: then a reload loses it, as it always did
    }
  };

  const taken = (name) => {
    try {
      return JSON.parse(sessionStorage.getItem(`plumbline.${name}`));
    } catch {
      return null;
    }
  };

  // Programs move the tabs too, so what is open is read when the page goes.
  addEventListener("pagehide", () => {
    const open = document.querySelector("#tabs > .tab-wrapper [role=tab][aria-selected=true]");
    if (open) keep("tab", open.textContent.trim().toLowerCase());
  });

  // Where this tab was, when it is loaded again; an address that is opened leads where it says.
  const place = () => {
    const [{ type }] = performance.getEntriesByType("navigation");
    return type === "navigate" ? null : { run: taken("run"), tab: taken("tab") };
  };

  // Who pressed or typed something has chosen a tab: where the address leads comes too late then.
  let acted = false;
  const act = (event) => {
    acted ||= event.isTrusted && Boolean(event.target.closest?.("#tabs"));
  };
  for (const kind of ["click", "input"]) addEventListener(kind, act, { capture: true });

  const opening = (tab) => (tab && !acted ? [{ __type__: "update", selected: tab }] : []);

  return {
    tick,
    keep,
    taken,
    place,
    // At once, before the studio has answered.
    openTab: () => opening(place()?.tab),
    openRuns: (leads) => opening(leads && "runs"),
    // What is kept is first put back: until then, the page's first values would take its place.
    takenFields: () => {
      const form = taken("form");
      if (form !== null) return [form];
      ready.add("form");
      return [];
    },
    fill: (keys, fit) => {
      ready.add("form");
      return keys.map((key) => fit?.[key]);
    },
    keepFields: (keys, values) => {
      if (ready.has("form")) keep("form", Object.fromEntries(keys.map((key, number) => [key, values[number]])));
      return [];
    },
    token: () => Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) => part.toString(16)).join("-"),
  };
})();
