// The page's own script: draws the figures from the data beside them, and moves them all with one slider.
//
// A figure.plot holds a JSON block {"drawings": [{data, layout, frames, cursor, dot}, …], "columns": {…}}. `frames` are
// what a heat map shows at each checkpoint; `cursor` is the training step at which the x axis has its zero; `dot` has x
// and y at each checkpoint. A figure.panels holds {"parts": […], "frames": [[…], …], "csv": […]}: an SVG's markup by
// checkpoint.
"use strict";
{
  const ARRAYS = {
    f8: Float64Array, f4: Float32Array, i4: Int32Array, i2: Int16Array, i1: Int8Array,
    u4: Uint32Array, u2: Uint16Array, u1: Uint8Array,
  };
  const CONFIG = {
    displaylogo: false, responsive: true, showSendToCloud: false, plotlyServerURL: "", displayModeBar: !matchMedia("(hover: none)").matches && "hover",
    modeBarButtonsToRemove: ["zoomIn2d", "zoomOut2d", "autoScale2d", "lasso2d", "select2d"],
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)");

  // ---- reading what the page carries -------------------------------------------------------------------------

  const read = (within) => decoded(JSON.parse(within.querySelector("script[type='application/json']").textContent));

  function decoded(value) {
    if (Array.isArray(value)) return value.map(decoded);
    if (value === null || typeof value !== "object") return value;
    if (!("bdata" in value)) return mapped(value, decoded);
    const bytes = Uint8Array.from(atob(value.bdata), (letter) => letter.charCodeAt(0));
    let numbers = new ARRAYS[value.dtype](bytes.buffer);
    if (value.scale) numbers = Float32Array.from(numbers, (each) => (each === 255 ? NaN : each * value.scale));
    const shape = value.shape ?? [numbers.length];
    return rows(numbers, typeof shape === "string" ? shape.split(",").map(Number) : shape);
  }

  // Nested rows of one array, without a copy of its numbers.
  function rows(numbers, [length, ...inner]) {
    if (!inner.length) return numbers;
    const size = inner.reduce((a, b) => a * b, 1);
    return Array.from({ length }, (_, n) => rows(numbers.subarray(n * size, (n + 1) * size), inner));
  }

  const mapped = (value, change) => Object.fromEntries(Object.entries(value).map(([key, each]) => [key, change(each)]));

  // ---- drawing -----------------------------------------------------------------------------------------------

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // Plotly reads markup in text, so names are escaped for it; black is whatever colour text has.
  function shown(value) {
    if (typeof value === "string") {
      if (value === "#000000") return colour("--ink");
      return value.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
    }
    if (Array.isArray(value)) return typeof value[0] === "number" ? value : value.map(shown);
    return value !== null && typeof value === "object" && !ArrayBuffer.isView(value) ? mapped(value, shown) : value;
  }

  function template() {
    const axis = {
      gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--line"),
      ticks: "", automargin: true, title: { standoff: 8 },
    };
    return {
      layout: {
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        font: { color: colour("--ink"), family: "system-ui, sans-serif", size: 12 },
        hoverlabel: { font: { family: "system-ui, sans-serif" } },
        modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--quiet"), activecolor: colour("--accent") },
        margin: { l: 56, r: 12, t: 30, b: 44 }, title: { font: { size: 13 }, x: 0, xref: "paper", y: 0.98 },
        xaxis: axis, yaxis: axis,
      },
    };
  }

  class Drawing {
    constructor(div, spec) {
      Object.assign(this, { div, spec, index: 0, near: false });
      this.moves = spec.frames || spec.cursor !== null || spec.dot;
    }

    async draw() {
      this.data = this.spec.data.map(shown);
      this.layout = { ...shown(this.spec.layout), template: template(), uirevision: true };
      if (touch.matches) this.layout.dragmode = false; // a finger scrolls the page
      if (this.spec.frames) {
        this.data[0].z = this.spec.frames[this.index];
        for (const axis of ["xaxis", "yaxis"]) Object.assign(this.layout[axis], { automargin: false, fixedrange: true });
        Object.assign(this.layout, { margin: { l: 80, r: 8, t: 30, b: 64 }, dragmode: false });
      }
      await Plotly.react(this.div, this.data, this.layout, CONFIG);
    }

    // What moves lies over the figure, and costs no drawing by plotly, which takes 9 ms for a map.
    mark() {
      if (!this.moves) return;
      const { frames, dot, cursor } = this.spec;
      this.over = this.div.appendChild(document.createElement(frames ? "canvas" : "div"));
      this.over.className = frames ? "cells" : dot ? "dot" : "cursor";
      if (frames) this.colours = gradient(this.spec.data[0]);
      const measure = () => {
        const area = this.div.querySelector(".nsewdrag"); // what the axes enclose
        const size = (name) => Number(area.getAttribute(name));
        this.area = { left: size("x"), top: size("y"), width: size("width"), height: size("height") };
        if (!frames) this.point();
      };
      measure();
      this.div.on("plotly_afterplot", measure);
      if (frames) return;
      this.div.on("plotly_relayouting", () => this.point());
      if (cursor !== null) this.div.addEventListener("click", (event) => this.pick(event));
    }

    // A click between the axes goes to the checkpoint nearest to it.
    pick(event) {
      const frame = this.div.getBoundingClientRect();
      const { left, top, width, height } = this.area;
      const [low, high] = this.div.layout.xaxis.range;
      const across = (event.clientX - frame.left - left) / width;
      const down = (event.clientY - frame.top - top) / height;
      if (Math.min(across, down) >= 0 && Math.max(across, down) <= 1)
        move(nearest(low + across * (high - low) + this.spec.cursor));
    }

    show(index) {
      if (!this.near || index === this.index) return; // what nobody sees is drawn when it comes into view
      this.index = index;
      if (!this.spec.frames) {
        this.point();
        return;
      }
      this.paint();
      clearTimeout(this.resting);
      this.resting = setTimeout(() => this.settle(), 200);
    }

    // Where the slider rests, the map is plotly's again: with values under the pointer, and to be saved as a picture.
    async settle() {
      const index = this.index;
      this.data[0].z = this.spec.frames[index];
      await Plotly.react(this.div, this.data, this.layout, CONFIG);
      if (index === this.index) this.over.style.visibility = "hidden";
    }

    paint() {
      const { left, top, width, height } = this.area;
      const z = this.spec.frames[this.index];
      const [across, down] = [width / z[0].length, height / z.length];
      Object.assign(this.over, { width: width * devicePixelRatio, height: height * devicePixelRatio });
      const style = { left: `${left}px`, top: `${top}px`, width: `${width}px`, height: `${height}px` };
      Object.assign(this.over.style, style, { visibility: "visible" });
      const pen = this.over.getContext("2d");
      pen.scale(devicePixelRatio, devicePixelRatio);
      Object.assign(pen, { font: "12px system-ui, sans-serif", textAlign: "center", textBaseline: "middle" });
      for (const [row, values] of z.entries()) {
        for (const [column, value] of values.entries()) {
          if (Number.isNaN(value)) continue;
          const { fill, light } = this.colours(value);
          pen.fillStyle = fill;
          pen.fillRect(column * across, row * down, across + 0.5, down + 0.5); // no seams between cells
          if (!this.spec.data[0].texttemplate) continue;
          pen.fillStyle = light ? "#444444" : "#ffffff";
          pen.fillText(value.toFixed(2), (column + 0.5) * across, (row + 0.5) * down);
        }
      }
    }

    point() {
      const { dot, cursor } = this.spec;
      const { left, top, width, height } = this.area;
      const { xaxis, yaxis } = this.div.layout;
      const part = (value, [low, high]) => (value - low) / (high - low);
      const across = part(dot ? dot.x[this.index] : steps[this.index] - cursor, xaxis.range);
      const up = dot ? part(dot.y[this.index], yaxis.range) : 1;
      Object.assign(this.over.style, {
        left: `${left + across * width}px`, top: `${top + (1 - up) * height}px`, height: dot ? "" : `${height}px`,
        visibility: across >= 0 && across <= 1 && up >= 0 && up <= 1 ? "visible" : "hidden",
      });
    }
  }

  // A trace's colour scale, as plotly interpolates it, in 256 steps; and which of its colours are light.
  function gradient({ colorscale, zmin, zmax }) {
    const stops = colorscale.map(([, hex]) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
    const colours = Array.from({ length: 256 }, (_, n) => {
      const place = (n / 255) * (stops.length - 1);
      const below = Math.min(Math.floor(place), stops.length - 2);
      const rgb = stops[below].map((each, c) => Math.round(each + (place - below) * (stops[below + 1][c] - each)));
      return { fill: `rgb(${rgb})`, light: 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 128 };
    });
    return (value) => colours[Math.max(0, Math.min(255, Math.round((255 * (value - zmin)) / (zmax - zmin || 1))))];
  }

  class Panels {
    constructor(figure) {
      this.spec = read(figure);
      this.panel = figure.querySelector("svg .panel");
    }

    show(index) {
      this.panel.innerHTML = this.spec.frames[index].map((part) => this.spec.parts[part]).join("\n");
    }
  }

  class Readout {
    constructor(list) {
      this.values = read(list);
      this.places = [...list.querySelectorAll("dd")];
    }

    show(index) {
      this.places.forEach((place, n) => {
        const value = this.values[n][index];
        place.textContent = Number.isFinite(value) ? value.toFixed(3) : "–";
      });
    }
  }

  // ---- data to take away -------------------------------------------------------------------------------------

  const quoted = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };

  // A row for every point, and, of what moves with the slider, for every checkpoint.
  function* points({ drawings, columns }) {
    const moving = drawings.some(({ frames }) => frames);
    yield [...(moving ? ["step"] : []), "series", columns.x, columns.y, ...(moving ? [columns.z] : [])];
    for (const { data, frames } of drawings) {
      for (const { name, x, y } of data) {
        if (!frames) for (const [n, value] of [...x].entries()) yield [name, value, y[n]];
        else
          for (const [index, z] of frames.entries())
            for (const [r, row] of [...y].entries())
              for (const [c, column] of [...x].entries()) if (!Number.isNaN(z[r][c])) yield [steps[index], name, column, row, z[r][c]];
      }
    }
  }

  function save(name, type, text) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  function offer(figure, spec) {
    const name = figure.dataset.name;
    figure.querySelector(".csv").addEventListener("click", () => {
      const lines = spec.csv ?? [...points(spec)];
      save(`${name}.csv`, "text/csv", lines.map((line) => line.map(quoted).join(",")).join("\n") + "\n");
    });
    figure.querySelector(".svg")?.addEventListener("click", () => {
      const svg = figure.querySelector("svg").cloneNode(true);
      save(`${name}-step-${steps[current]}.svg`, "image/svg+xml", new XMLSerializer().serializeToString(svg));
    });
  }

  // ---- the slider --------------------------------------------------------------------------------------------

  const scrubber = document.querySelector(".scrubber");
  const steps = scrubber ? read(scrubber).steps : [];
  const slider = scrubber?.querySelector("input");
  const play = scrubber?.querySelector(".play");
  let moved = [];
  let current = -1;
  let wanted = -1;
  let playing = null;

  const nearest = (step) =>
    steps.reduce((best, each, index) => (Math.abs(each - step) < Math.abs(steps[best] - step) ? index : best), 0);

  // Asks for a checkpoint. However fast the slider moves, the page follows once for each picture of the screen.
  function go(index) {
    if (wanted === current) requestAnimationFrame(follow);
    wanted = Math.max(0, Math.min(steps.length - 1, index));
  }

  function follow() {
    if (wanted === current) return;
    current = wanted;
    tell();
  }

  function tell() {
    slider.value = current;
    const words = `step ${steps[current].toLocaleString("en-GB")}`;
    slider.setAttribute("aria-valuetext", words);
    scrubber.querySelector(".now").textContent = words;
    for (const each of moved) each.show(current);
    scrubber.dispatchEvent(new CustomEvent("shown", { detail: steps[current] }));
  }

  // What a reader asks for ends the play.
  function move(index) {
    if (playing) toggle();
    go(index);
  }

  function toggle() {
    play.textContent = playing ? "▶" : "❚❚";
    play.setAttribute("aria-label", playing ? "Play" : "Pause");
    if (playing) {
      cancelAnimationFrame(playing.frame);
      playing = null;
      return;
    }
    const first = current === steps.length - 1 ? 0 : current;
    playing = {};
    const advance = (now) => {
      playing.since ??= now;
      const index = first + Math.floor(((now - playing.since) / 12_000) * steps.length); // the whole run in 12 s
      go(index);
      if (index >= steps.length - 1) toggle();
      else playing.frame = requestAnimationFrame(advance);
    };
    playing.frame = requestAnimationFrame(advance);
  }

  function press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const far = event.shiftKey ? 10 : 1;
    const keys = {
      ArrowLeft: () => move(wanted - far), ArrowRight: () => move(wanted + far), Home: () => move(0),
      End: () => move(steps.length - 1), " ": toggle,
    };
    if (!(event.key in keys) || (event.key === " " && event.target.closest?.("button, a"))) return;
    event.preventDefault();
    keys[event.key]();
  }

  const asked = () => /^#step=(\d+)$/.exec(location.hash)?.[1];

  // ---- putting it together -----------------------------------------------------------------------------------

  // Keeps up to date what is in view, or nearly.
  function watch(drawings) {
    const of = new Map(drawings.map((each) => [each.div, each]));
    const observer = new IntersectionObserver(
      (entries) => {
        for (const { target, isIntersecting } of entries) {
          of.get(target).near = isIntersecting;
          of.get(target).show(current);
        }
      },
      { rootMargin: "100px" },
    );
    const begin = () => [...of.keys()].forEach((div) => observer.observe(div));
    begin();
    addEventListener("beforeprint", () => {
      for (const each of drawings) Object.assign(each, { near: true }).show(current);
      for (const each of drawings) if (each.spec.frames) each.settle();
    });
    addEventListener("afterprint", () => {
      observer.disconnect();
      begin(); // tells anew what is in view
    });
  }

  async function start() {
    const drawings = [];
    for (const figure of document.querySelectorAll("figure.plot")) {
      const spec = read(figure);
      const places = [...figure.querySelectorAll(".drawing")];
      drawings.push(...spec.drawings.map((each, n) => new Drawing(places[n], each)));
      offer(figure, spec);
    }
    const panels = [...document.querySelectorAll("figure.panels")].map((figure) => {
      const made = new Panels(figure);
      offer(figure, made.spec);
      return made;
    });
    moved = [...[...document.querySelectorAll(".readout")].map((list) => new Readout(list)), ...panels, ...drawings];
    if (scrubber) current = wanted = asked() === undefined ? steps.length - 1 : nearest(Number(asked()));
    for (const each of drawings) each.index = current;
    await Promise.all(drawings.map((each) => each.draw()));
    dark.addEventListener("change", () => drawings.forEach((each) => each.draw()));
    if (!scrubber) return;
    for (const each of drawings) each.mark();
    watch(drawings.filter((each) => each.moves));
    tell();
    slider.addEventListener("input", () => move(Number(slider.value)));
    play.addEventListener("click", toggle);
    scrubber.querySelector(".transition")?.addEventListener("click", (event) => {
      move(nearest(Number(event.currentTarget.dataset.step)));
    });
    addEventListener("keydown", press);
    addEventListener("hashchange", () => asked() && move(nearest(Number(asked()))));
  }

  start().then(() => document.documentElement.classList.add("ready"));
}
