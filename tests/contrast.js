// The texts whose contrast is below WCAG 2's 4.5, over the backgrounds behind them; translucent
// backgrounds are blended. An expression, for Runtime.evaluate.
(() => {
  const parse = (text) => {
    const [red, green, blue, alpha] = text.match(/[\d.]+/g).map(Number);
    return [red, green, blue, alpha ?? 1];
  };
  const linear = (x) => (x / 255 <= 0.03928 ? x / 255 / 12.92 : ((x / 255 + 0.055) / 1.055) ** 2.4);
  const light = (c) => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
  const over = (a, b) => [0, 1, 2].map((i) => a[i] * a[3] + b[i] * (1 - a[3]));
  const ground = (node) => {
    const stack = [];
    for (let n = node; n; n = n.parentElement) {
      const colour = parse(getComputedStyle(n).backgroundColor);
      if (colour[3]) stack.push(colour);
      if (colour[3] === 1) break;
    }
    return stack.reduceRight((below, colour) => over(colour, below), [255, 255, 255]);
  };
  const low = new Set();
  for (const node of document.querySelectorAll("body *")) {
    const texts = [...node.childNodes].filter((n) => n.nodeType === 3 && n.textContent.trim());
    if (!texts.length || node.closest("svg, script, style, noscript, .hidden, option")) continue;
    const a = light(parse(getComputedStyle(node).color));
    const b = light(ground(node));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.add(`${node.tagName}.${node.className} ${ratio.toFixed(2)} ${node.textContent.slice(0, 30)}`);
  }
  return [...low].slice(0, 10);
})()
