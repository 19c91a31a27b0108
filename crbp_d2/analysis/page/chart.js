"use strict";

const MARGIN = { top: 18, right: 10, bottom: 34, left: 46 };
const DASHES = ["", "7 3", "2 3", "9 3 2 3"];

/** An element of an SVG, with attributes. */
function svgElement(svg, name, attributes, text = "") {
  const element = document.createElementNS(svg.namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
}

/** Gives an element the colour of a run. */
function ofRun(element, number) {
  element.style.setProperty("--ink", `var(--run-${number})`);
  return element;
}

/** Whole numbers with distances of 1, 2 or 5 times a power of ten, at most `most`. */
function wholeTicks(first, last, most) {
  let distance = 1;
  for (let power = 1; (last - first) / distance >= most; power *= 10) {
    distance = [1, 2, 5].map((factor) => factor * power)
      .find((candidate) => (last - first) / candidate < most) ?? distance * 10;
  }
  const ticks = [];
  for (let tick = Math.ceil(first / distance) * distance; tick <= last; tick += distance) {
    ticks.push(tick);
  }
  return ticks;
}

/** Powers of ten that span the positive values, and the exponents to label. */
function decades(values) {
  const positive = values.filter((value) => value > 0);
  if (!positive.length) return { low: -1, high: 0, ticks: [-1, 0] };
  const low = Math.floor(Math.log10(Math.min(...positive)));
  const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(...positive))));
  return { low, high, ticks: wholeTicks(low, high, 6) };
}

/** Lines against the step, drawn anew for every step and size.
 *
 * `options.maximum` is the end of a linear axis; without it the axis is logarithmic.
 * `options.pick(index)` is called with the step that was clicked.
 */
function makeChart(svg, options) {
  let shown = null;
  let place = null;

  function draw() {
    const width = svg.clientWidth;
    const height = svg.clientHeight;
    if (!shown || width < 120) return;
    const { steps, runs, index } = shown;
    const right = width - MARGIN.right;
    const bottom = height - MARGIN.bottom;
    const first = steps[0];
    const last = steps[steps.length - 1];
    const x = (step) =>
      last > first
        ? MARGIN.left + ((step - first) / (last - first)) * (right - MARGIN.left)
        : (MARGIN.left + right) / 2;
    const scale = options.maximum
      ? { low: 0, high: options.maximum, of: (value) => value }
      : { ...decades(runs.flatMap((run) => run.values)), of: Math.log10 };
    const ticks = scale.ticks ?? [0, 0.25, 0.5, 0.75, 1].map((part) => part * options.maximum);
    const y = (level) =>
      bottom - ((level - scale.low) / (scale.high - scale.low)) * (bottom - MARGIN.top);
    place = { x, steps };
    svg.replaceChildren();
    const add = (name, attributes, text) => {
      const element = svgElement(svg, name, attributes, text);
      svg.append(element);
      return element;
    };

    for (const tick of ticks) {
      add("line", { class: "grid", x1: MARGIN.left, x2: right, y1: y(tick), y2: y(tick) });
      const label = add("text", { x: MARGIN.left - 8, y: y(tick) + 4, "text-anchor": "end" });
      if (options.maximum) {
        label.textContent = tick;
      } else {
        label.textContent = "10";
        const power = svgElement(svg, "tspan", { dy: -5, "font-size": 9 });
        power.textContent = String(tick).replace("-", "\u2212");
        label.append(power);
      }
    }
    for (const tick of wholeTicks(first, last, width / 46)) {
      add("text", { x: x(tick), y: bottom + 16, "text-anchor": "middle" }, tick);
    }
    add("text", { x: (MARGIN.left + right) / 2, y: height - 3, "text-anchor": "middle" }, "step");

    // Runs trained for the same number share one line: their dots alternate.
    const trained = runs.filter((run) => run.trained >= first && run.trained <= last);
    for (const run of trained) {
      const same = trained.filter((other) => other.trained === run.trained);
      const line = add("line", {
        class: "trained",
        x1: x(run.trained), x2: x(run.trained), y1: MARGIN.top, y2: bottom,
        "stroke-dasharray": `2 ${4 + 6 * (same.length - 1)}`,
        "stroke-dashoffset": -6 * same.indexOf(run),
      });
      ofRun(line, run.number);
      if (same[0] === run) {
        add("text", { x: x(run.trained), y: MARGIN.top - 6, "text-anchor": "middle" }, run.trained);
      }
    }

    add("line", {
      class: "cursor", x1: x(steps[index]), x2: x(steps[index]), y1: MARGIN.top, y2: bottom,
    });
    for (const run of runs) {
      let path = "";
      let gap = true;
      run.values.forEach((value, number) => {
        if (value === null || (!options.maximum && !(value > 0))) {
          gap = true;
          return;
        }
        const at = `${x(steps[number]).toFixed(1)} ${y(scale.of(value)).toFixed(1)}`;
        path += `${gap ? "M" : "L"}${at}`;
        gap = false;
      });
      const dashes = DASHES[run.number % DASHES.length];
      ofRun(add("path", { class: "run", d: path, "stroke-dasharray": dashes }), run.number);
    }
    for (const run of runs) {
      const value = run.values[index];
      if (value === null || (!options.maximum && !(value > 0))) continue;
      const circle = { class: "now", cx: x(steps[index]), cy: y(scale.of(value)), r: 5.5 };
      ofRun(add("circle", circle), run.number);
    }
  }

  function pick(event) {
    if (!place || !(event.buttons & 1)) return;
    const at = event.clientX - svg.getBoundingClientRect().left;
    const distances = place.steps.map((step) => Math.abs(place.x(step) - at));
    options.pick(distances.indexOf(Math.min(...distances)));
  }

  svg.addEventListener("pointerdown", pick);
  svg.addEventListener("pointermove", pick);
  new ResizeObserver(draw).observe(svg);
  return (what, label) => {
    shown = what;
    svg.setAttribute("aria-label", label);
    draw();
  };
}
