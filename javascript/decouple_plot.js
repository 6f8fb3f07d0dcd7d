// Drawing: lines over steps as an SVG, and heat maps of entities as small canvases.
(function() {
    const SVG = "http://www.w3.org/2000/svg";
    const HEIGHT = 220, LEFT = 56, RIGHT = 12, TOP = 10, BOTTOM = 38;
    const DASHES = ["", "8 4", "2 4", "10 4 2 4", "14 4", "4 2", "2 8", "10 4 2 4 2 4"];

    function node(tag, attributes, text = "") {
        const made = document.createElementNS(SVG, tag);
        for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
        made.textContent = text;
        return made;
    }

    // Two to six round numbers over low to high, the first and the last not within.
    function ticks(low, high) {
        const rough = (high - low) / 4, size = 10 ** Math.floor(Math.log10(rough));
        const step = [1, 2, 5, 10].map((one) => one * size).find((one) => one >= rough * 0.999);
        const first = Math.floor(low / step + 1e-6), last = Math.ceil(high / step - 1e-6);
        return Array.from({length: last - first + 1}, (_, k) => (first + k) * step);
    }

    const short = (value) => +value.toPrecision(3) + "";

    // A line's points are drawn filled; what a point became by the step's update, its third number, hollow, with a
    // stroke to it.
    // lines: [{name, colour, dash, points: [[step, before, after?], ...]}]
    // within: the element that it is drawn for, whose width it takes, so that its letters have the page's size.
    function plot(lines, {x, y, label, within}) {
        const width = Math.min(Math.max(within.clientWidth || 480, 240), 640);
        const made = node("svg", {viewBox: `0 0 ${width} ${HEIGHT}`, class: "decouple-plot", role: "img", "aria-label": label});
        const points = lines.flatMap((line) => line.points);
        const values = points.flatMap(([, ...own]) => own).filter(Number.isFinite);
        if (!values.length) return made;
        const steps = points.map(([step]) => step);
        const first = Math.min(...steps), last = Math.max(...steps, first + 1);
        let low = Math.min(...values), high = Math.max(...values);
        if (low >= 0 && low < 0.4 * high) low = 0;
        if (low === high) [low, high] = [low - 0.5, high + 0.5];
        const levels = ticks(low, high);
        [low, high] = [levels[0], levels.at(-1)];
        const across = (step) => LEFT + (step - first) / (last - first) * (width - LEFT - RIGHT);
        const up = (value) => HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM);
        for (const value of levels) {
            made.append(node("line", {class: "decouple-grid-line", x1: LEFT, x2: width - RIGHT, y1: up(value), y2: up(value)}));
            made.append(node("text", {x: LEFT - 6, y: up(value) + 4, "text-anchor": "end"}, short(value)));
        }
        const whole = ticks(first, last).filter((one) => Number.isInteger(one) && one >= first && one <= last);
        for (const step of whole) {
            made.append(node("text", {x: across(step), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle"}, step));
        }
        made.append(node("text", {x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 5, "text-anchor": "middle"}, x));
        const middle = (TOP + HEIGHT - BOTTOM) / 2;
        made.append(node("text", {
            x: 13, y: middle, "text-anchor": "middle", transform: `rotate(-90 13 ${middle})`,
        }, y));
        for (const line of lines) {
            const own = node("g", {style: `--decouple-colour: ${line.colour ?? "var(--body-text-color)"}`});
            own.append(node("title", {}, line.name));
            const path = line.points.filter((one) => Number.isFinite(one[1]));
            own.append(node("polyline", {
                points: path.map(([step, value]) => `${across(step)},${up(value)}`).join(" "),
                "stroke-dasharray": line.dash ?? "",
            }));
            for (const [step, value, after] of path) {
                if (Number.isFinite(after)) {
                    own.append(node("line", {x1: across(step), x2: across(step), y1: up(value), y2: up(after)}));
                    own.append(node("circle", {class: "decouple-after", cx: across(step), cy: up(after), r: 3.5}));
                }
                own.append(node("circle", {cx: across(step), cy: up(value), r: 3}));
            }
            made.append(own);
        }
        return made;
    }

    // What the lines of a plot mean.
    function legend(lines, after) {
        const list = decouple.part("ul", "decouple-legend");
        for (const line of lines) {
            const sample = node("svg", {viewBox: "0 0 32 10", "aria-hidden": true, style: `--decouple-colour: ${line.colour ?? "var(--body-text-color)"}`});
            sample.append(node("line", {x1: 0, x2: 32, y1: 5, y2: 5, "stroke-dasharray": line.dash ?? ""}));
            const one = decouple.part("li");
            one.append(sample, line.name);
            list.append(one);
        }
        if (after) list.append(decouple.part("li", "", decoupleSay("● before the step's update, ○ after it")));
        list.append(decouple.part("li", "", decoupleSay("Lines change from step to step without guidance, too, as the noise falls.")));
        return list;
    }

    // An entity's map, `values` [height][width], in its colour over black; the brightest is the map's highest value.
    function heat(values, colour, name, about = "") {
        const height = values.length, width = values[0].length;
        const most = Math.max(...values.flat(), 1e-12);
        const canvas = decouple.part("canvas", "", "", {width, height, role: "img", "aria-label": decoupleSay("Map of {name}{about}", {name, about})});
        const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
        const data = new Uint8ClampedArray(width * height * 4);
        values.flat().forEach((value, k) => data.set([r, g, b, 255 * value / most], 4 * k));
        canvas.getContext("2d").putImageData(new ImageData(data, width, height), 0, 0);
        const caption = decouple.part("figcaption");
        caption.append(decouple.part("span", "decouple-swatch", "", {style: `background: ${colour}`, "aria-hidden": true}), name);
        return decouple.part("figure", "decouple-map", "", {}, canvas, caption);
    }

    Object.assign(globalThis.decouple ??= {}, {plot, legend, heat, dash: (k) => DASHES[k % DASHES.length]});
})();
