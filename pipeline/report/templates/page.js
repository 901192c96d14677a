"use strict";
(() => {
  const root = document.documentElement;
  const theme = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const name = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
  theme.hidden = false;
  name();
  dark.addEventListener("change", name);
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; name(); });

  const source = document.getElementById("token-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const get = (id) => document.getElementById(id);
  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  // A space and a line break are tokens' parts too: in lists they are shown.
  const spelled = (text) => text.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥");
  const percent = (p) => (p >= 0.1 ? (100 * p).toFixed(0) : (100 * p).toFixed(1)) + " %";
  // Entropy that gets the full colour.
  const FULL_NATS = 5;
  let current = 0;

  function showToken(position) {
    const example = data.examples[current];
    const gold = example.gold[position];
    get("gold").querySelectorAll(".tok").forEach((node, number) => {
      const chosen = number === position;
      node.tabIndex = chosen ? 0 : -1;
      if (chosen) node.setAttribute("aria-current", "true"); else node.removeAttribute("aria-current");
    });
    const cards = example.positions[position].map((row, model) => {
      const card = make("div", "model");
      card.append(make("h5", "", data.models[model]));
      card.append(make("p", "", "gold " + percent(row[0] / 1e4) + ", entropy " + (row[1] / 100).toFixed(2)));
      for (let place = 2; place < row.length; place += 2) {
        const probability = row[place + 1] / 1e4;
        const line = make("div", row[place] === gold ? "row gold" : "row");
        const bar = make("i");
        bar.style.width = 100 * probability + "%";
        const text = make("span", "", spelled(data.tokens[row[place]]));
        text.dir = "auto";
        line.append(bar, text, make("span", "", percent(probability)));
        card.append(line);
      }
      return card;
    });
    get("panel").replaceChildren(...cards);
  }

  function showExample(number) {
    current = (number + data.examples.length) % data.examples.length;
    const example = data.examples[current];
    get("example").value = String(current);
    get("prompt").textContent = example.prompt;
    const shown = example.gold.length;
    get("gold-note").textContent = shown < example.num_tokens ? "first " + shown + " of " + example.num_tokens + " tokens" : shown + " tokens";
    get("gold").replaceChildren(...example.gold.map((token, position) => {
      const text = data.tokens[token];
      const node = make("span", "tok", text.replace(/\n/g, "↵\n") || "∅");
      const nats = example.positions[position][0][1] / 100;
      node.setAttribute("role", "button");
      node.style.setProperty("--u", Math.min(1, nats / FULL_NATS).toFixed(3));
      node.title = "entropy " + nats.toFixed(2) + " nats";
      node.addEventListener("mouseenter", () => showToken(position));
      node.addEventListener("focus", () => showToken(position));
      node.addEventListener("click", () => showToken(position));
      return node;
    }));
    // Starts where the teacher is least sure: there is most to see.
    const nats = example.positions.map((models) => models[0][1]);
    showToken(nats.indexOf(Math.max(...nats)));
  }

  get("gold").addEventListener("keydown", (event) => {
    const nodes = [...get("gold").querySelectorAll(".tok")];
    const place = nodes.indexOf(document.activeElement);
    const to = { ArrowRight: place + 1, ArrowLeft: place - 1, ArrowDown: place + 1, ArrowUp: place - 1, Home: 0, End: nodes.length - 1 }[event.key];
    if (place < 0 || to === undefined || !nodes[to]) return;
    event.preventDefault();
    nodes[to].focus();
  });
  data.examples.forEach((example, number) => {
    const option = make("option", "", number + 1 + " of " + data.examples.length + " (" + example.id.slice(0, 8) + ")");
    option.value = String(number);
    get("example").append(option);
  });
  get("example").addEventListener("change", (event) => showExample(Number(event.target.value)));
  get("previous").addEventListener("click", () => showExample(current - 1));
  get("next").addEventListener("click", () => showExample(current + 1));
  if (data.examples.length) { get("token-view").hidden = false; showExample(0); }
})();
