// After a run: what guidance did to each picture, as a plot, as a table and as files, and its maps. The status line
// tells the run's number; nothing is asked while the panel is closed.
(function() {
    const say = (text, values) => decoupleSay(text, values); // which another file defines
    // Asked for when they are shown: the page's translation comes after this file.
    const measures = () => [
        ["loss", say("Loss")], ["iou", say("Overlap (IoU)")], ["distance", say("Distance of the centres")],
        ["kl", say("KL divergence")], ["cc", say("Shared attention (1 − CC)")], ["intensity", say("Intensity")],
        ["spread", say("Spread")],
    ];
    const moments = () => ({
        unguided: say("before guidance"), first: say("after the first guided step"), last: say("after the last guided step"),
    });

    class Trace {
        constructor(tab) {
            this.tab = tab;
            this.shown = null; // number of the run that the panel shows
            this.place = decouple.find(tab, "trace", ".decouple-trace");
            if (!this.place) return;
            const {part} = decouple;
            this.says = part("p", "decouple-says", "", {role: "status"});
            this.image = this.select(say("Image"), () => this.draw());
            this.pass = this.select(say("Pass"), () => this.draw());
            this.measure = this.select(say("Measure"), () => this.draw());
            this.plot = part("div");
            this.maps = part("div", "decouple-moments");
            this.table = part("div", "decouple-table");
            const save = part("div", "decouple-row");
            for (const kind of ["JSON", "CSV"]) {
                const button = part("button", "decouple-button", kind, {"aria-label": say("Download the trace as {kind}", {kind})});
                button.addEventListener("click", () => this.download(kind.toLowerCase()));
                save.append(button);
            }
            this.guided = part("div", "", "", {}, part("div", "decouple-row", "", {}, this.measure.label), this.plot, this.maps,
                part("details", "decouple-panel", "", {}, part("summary", "", say("As a table")), this.table), save);
            this.content = part("div", "", "", {hidden: ""},
                part("div", "decouple-row", "", {}, this.image.label, this.pass.label), this.guided);
            this.panel = part("details", "decouple-panel", "", {}, part("summary", "", say("Trace of the last run")), this.content);
            this.content.before(this.says);
            this.place.replaceChildren(this.panel);
            this.panel.addEventListener("toggle", () => {
                if (this.content.hidden) this.shown = null; // opened again after a failure
                this.look();
            });
            onAfterUiUpdate(() => this.look());
        }

        select(name, changed) {
            const field = decouple.part("select");
            field.addEventListener("change", changed);
            return {field, label: decouple.part("label", "", name, {}, field)};
        }

        fill(select, options) {
            const before = select.field.value;
            select.field.replaceChildren(...options.map(([value, text]) => decouple.part("option", "", text, {value})));
            if (options.some(([value]) => `${value}` === before)) select.field.value = before;
            select.label.hidden = options.length < 2;
        }

        run() {
            return decouple.find(this.tab, "status", ".decouple-run")?.dataset.run ?? "";
        }

        async look() {
            if (!this.panel.open || !decouple.seen(this.panel)) return;
            const run = this.run();
            if (run === this.shown) return;
            this.shown = run;
            this.content.hidden = true;
            if (!run) {
                this.says.textContent = say("Shown here after a guided run whose trace is kept.");
                return;
            }
            this.says.textContent = say("Asking for it …");
            try {
                const [trace, maps] = await Promise.all(["trace", "maps"].map(async (kind) =>
                    (await decouple.ask(this.place, `${kind}/${encodeURIComponent(run)}`)).json()));
                if (run !== this.shown) return;
                this.answer = trace;
                this.answer.maps = maps.images;
                this.says.textContent = "";
                this.fill(this.image, trace.images.map((one, k) => [k, say("{number}: seed {seed}", {number: one.number + 1, seed: one.seed})]));
                this.content.hidden = false;
                this.draw();
            } catch (error) {
                if (run === this.shown) this.says.textContent = error.message;
            }
        }

        draw() {
            const image = this.answer.images[this.image.field.value || 0];
            if (!image) return;
            this.fill(this.pass, image.passes.map((one, k) => [k, one.hires ? say("hires fix") : say("first")]));
            const pass = image.passes[this.pass.field.value || 0];
            const steps = pass?.steps ?? [];
            this.guided.hidden = !steps.length;
            if (!steps.length) {
                this.says.textContent = pass?.stood_aside ? say("This picture was not guided: {reason}", {reason: pass.stood_aside})
                    : say("This picture was not guided.");
                return;
            }
            const known = measures(), told = known.filter(([key]) => key === "loss" || steps.some((step) => Object.keys(step.before?.[key] ?? {}).length));
            this.fill(this.measure, told);
            const key = this.measure.field.value || "loss";
            const lines = this.lines(image, steps, key);
            const name = known.find(([one]) => one === key)[1];
            const about = say("{measure} over {steps} steps of “{prompt}”", {measure: name, steps: steps.length, prompt: image.prompt});
            const after = lines.some((line) => line.points.some((one) => Number.isFinite(one[2])));
            const hint = lines.length && key !== "loss" && !after
                ? say("Values before each update. Those after it, too: Settings, Attention Decoupling, “Measure after each update”.") : "";
            this.says.textContent = pass?.stood_aside ? say("Stood aside: {reason}", {reason: pass.stood_aside}) : hint;
            this.plot.replaceChildren(decouple.plot(lines, {x: say("step (from 0)"), y: name, label: about, within: this.plot}), decouple.legend(lines, after));
            this.tabulate(lines, about);
            this.showMaps(image, pass);
        }

        // One line for the loss, one for each entity, or one for each pair.
        lines(image, steps, key) {
            if (key === "loss") {
                return [{name: say("loss"), points: steps.map((one) => [one.step, one.loss, one.after?.loss])}];
            }
            const names = [...new Set(steps.flatMap((one) => Object.keys(one.before?.[key] ?? {})))];
            return names.map((name, k) => {
                const entity = image.entities.indexOf(name);
                const style = {dash: decouple.dash(k), ...(entity < 0 ? {} : {colour: image.colours[entity]})};
                const points = steps.map((one) => [one.step, one.before?.[key]?.[name], one.after?.[key]?.[name]]);
                return {name, ...style, points};
            });
        }

        tabulate(lines, about) {
            const {part} = decouple;
            const cell = (value) => part("td", "", Number.isFinite(value) ? value.toPrecision(4) : "–");
            const after = lines.some((line) => line.points.some((one) => Number.isFinite(one[2])));
            const heads = lines.flatMap((line) => after ? [say("{name}, before", {name: line.name}), say("{name}, after", {name: line.name})] : [line.name]);
            const rows = (lines[0]?.points ?? []).map(([step], k) => part("tr", "", "", {},
                part("th", "", step, {scope: "row"}),
                ...lines.flatMap((line) => line.points[k].slice(1, after ? 3 : 2).map(cell))));
            this.table.replaceChildren(part("table", "", "", {}, part("caption", "", about),
                part("thead", "", "", {}, part("tr", "", "", {}, ...[say("step"), ...heads].map((one) => part("th", "", one, {scope: "col"})))),
                part("tbody", "", "", {}, ...rows)));
        }

        showMaps(image, pass) {
            const {part} = decouple;
            const own = this.answer.maps.find((one) => one.number === image.number);
            const found = (own?.maps ?? []).filter((one) => one.hires === !!pass?.hires);
            this.maps.replaceChildren(...found.map((one) => {
                const told = say("{moment} (step {step})", {moment: moments()[one.moment], step: one.step});
                return part("div", "", "", {role: "group", "aria-label": say("Maps, {moment}", {moment: told})}, part("p", "decouple-moment", told),
                    part("div", "decouple-maps", "", {},
                        ...one.values.map((map, k) => decouple.heat(map, own.colours[k], own.entities[k], `, ${told}`))));
            }));
        }

        async download(kind) {
            try {
                const path = `trace/${encodeURIComponent(this.shown)}${kind === "csv" ? "/csv" : ""}`;
                const link = decouple.part("a", "", "", {
                    href: URL.createObjectURL(await (await decouple.ask(this.place, path)).blob()),
                    download: `decouple-${this.shown}.${kind}`,
                });
                link.click();
                setTimeout(() => URL.revokeObjectURL(link.href), 10000);
            } catch (error) {
                this.says.textContent = error.message;
            }
        }
    }

    onUiLoaded(() => decouple.TABS.forEach((tab) => new Trace(tab)));
})();
