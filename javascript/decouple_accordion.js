// The accordion as a whole: it opens when it is ticked, its status line belongs to the last run alone, and what
// "Guided steps" means is told in words.
(function() {
    const LOOK = 300; // ms; the host tells scripts neither that a box was ticked by a paste nor that a job has begun

    class Accordion {
        constructor(tab) {
            this.tab = tab;
            this.box = decouple.find(tab, "enabled");
            if (!this.box) return;
            this.ticked = this.isTicked();
            this.old = null; // number of the status that a run has left before the one that is being drawn
            this.busy = false;
            this.pressed = false; // Generate was, and the job that it began has not ended
            this.status = decouple.find(tab, "status");
            this.drawing = decouple.part("p", "decouple-says", "", {role: "status"});
            this.status?.after(this.drawing);
            this.means = Object.fromEntries(["loss", "steps", "size", "start", "rule", "stop", "layers"].map((name) => {
                const line = decouple.part("p", "decouple-means");
                decouple.find(tab, name)?.append(line);
                return [name, line];
            }));
            this.box.addEventListener("input", () => this.look());
            gradioApp().querySelector(`#${tab}_generate`)?.addEventListener("click", () => {
                this.pressed = true;
                this.begun();
            });
            setInterval(() => this.look(), LOOK);
        }

        isTicked() {
            return !!gradioApp().querySelector(`#${this.box.id}-visible-checkbox`)?.checked;
        }

        look() {
            this.openWhenTicked();
            const busy = decouple.busy(this.tab);
            // A short job may have left its status before it is seen to run: of one that was begun here that is known.
            if (busy && !this.busy && !this.pressed) this.begun();
            if (this.busy && !busy) this.pressed = false;
            this.busy = busy;
            this.showStatus();
            this.tellWhatIsLeftOpen();
        }

        // In A1111 a click on the box ticks it alone, and what it does would stay unseen.
        openWhenTicked() {
            const ticked = this.isTicked();
            const label = this.box.querySelector(".label-wrap");
            if (ticked && !this.ticked && !label.classList.contains("open")) label.click();
            this.ticked = ticked;
        }

        told() {
            return this.status?.querySelector(".decouple-run")?.dataset.told ?? null;
        }

        begun() {
            this.old = this.told();
            this.showStatus();
        }

        showStatus() {
            if (!this.status) return;
            const hidden = this.old !== null && this.told() === this.old;
            this.status.classList.toggle("decouple-old", hidden);
            const text = this.busy && this.ticked ? decoupleSay("A picture is being drawn.") : "";
            if (this.drawing.textContent !== text) this.drawing.textContent = text;
        }

        // What stands in for a value that is left to the loaded model, and for the 0 that means half of the steps.
        tellWhatIsLeftOpen() {
            const now = (name) => decouple.value(this.tab, name);
            const profile = decouple.profiles?.[this.tab];
            const percent = (share) => Math.round(100 * share);
            const part = (share) => decoupleSay("{percent} % of the run", {percent: percent(share)});
            // As closed() in profiles.py has it: a window whose end was chosen begins at the first step.
            const first = profile?.window && now("steps") === "-1" ? part(profile.window[0]) : decoupleSay("the first step");
            const last = profile?.window ? part(profile.window[1]) : decoupleSay("half of the run");
            const own = !profile ? {} : {
                loss: profile.loss, size: profile.size, steps: last, start: first, rule: profile.rule,
                stop: profile.stop_below === null ? decoupleSay("off") : decoupleSay("at loss {loss}", {loss: profile.stop_below}),
            };
            // As Profile.layers_for has it.
            if (profile && profile.layers !== "auto" && now("loss") === "auto" && now("stop") !== "presence") own.layers = profile.layers;
            const open = {loss: "auto", size: "0", steps: "-1", start: "-1", rule: "auto", stop: "auto", layers: own.layers ? "auto" : null};
            for (const [name, line] of Object.entries(this.means)) {
                let text = "";
                if (name === "steps" && now(name) === "0") text = decoupleSay("0: the first half of the run");
                if (now(name) === open[name]) {
                    text = profile ? decoupleSay("{open}, for {family}: {value}", {open: open[name], family: profile.family, value: own[name]})
                        : decoupleSay("{open}: what the model has; told once it is loaded", {open: open[name]});
                }
                if (line.textContent !== text) line.textContent = text;
            }
        }
    }

    onUiLoaded(() => decouple.TABS.forEach((tab) => new Accordion(tab)));
})();
