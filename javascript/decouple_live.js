// The panel that shows the entities' maps and the loss while a picture is drawn. Nothing is asked while it is closed.
(function() {
    const IDLE = 2000; // ms between two looks whether a job has begun

    class Live {
        constructor(tab) {
            this.tab = tab;
            this.timer = null;
            this.drawn = ""; // what the panel shows
            this.place = decouple.find(tab, "live", ".decouple-live");
            if (!this.place) return;
            const {part} = decouple;
            this.says = part("p", "decouple-says", "", {role: "status"});
            this.maps = part("div", "decouple-maps");
            this.curve = part("div");
            this.panel = part("details", "decouple-panel", "", {}, part("summary", "", decoupleSay("Live")), this.says, this.maps, this.curve);
            this.place.replaceChildren(this.panel);
            this.panel.addEventListener("toggle", () => this.look());
            document.addEventListener("visibilitychange", () => this.look());
        }

        // The host's name of what this page draws; it keeps it as long as it draws.
        task() {
            return localGet(`${this.tab}_task_id`) ?? "";
        }

        async look() {
            clearTimeout(this.timer);
            if (!this.panel.open || this.asking || !this.place.isConnected) return;
            let pause = IDLE;
            if (decouple.seen(this.panel)) {
                this.asking = true;
                try {
                    const answer = await (await decouple.ask(this.place, `live?task=${encodeURIComponent(this.task())}`)).json();
                    this.show(answer);
                    if (answer.running) pause = answer.interval_ms;
                } catch (error) {
                    this.tell(error.message);
                }
                this.asking = false;
            }
            clearTimeout(this.timer);
            this.timer = setTimeout(() => this.look(), pause);
        }

        // A screen reader hears a text when it changes only: steps are shown, not told one by one.
        tell(text) {
            if (this.says.textContent !== text) this.says.textContent = text;
        }

        show(now) {
            if (!now.enabled) return this.tell(decoupleSay("The live panel is off. Turn it on in Settings, Attention Decoupling."));
            if (!now.running || !now.entities.length) {
                return this.tell(this.drawn ? decoupleSay("The last guided picture:")
                    : decoupleSay("Maps and loss are shown here while a guided picture is drawn."));
            }
            this.tell(decoupleSay("Image {number} is being drawn.", {number: now.image + 1}));
            const drawn = JSON.stringify([now.id, now.image, now.step, now.points]);
            if (drawn === this.drawn) return;
            this.drawn = drawn;
            const maps = now.maps?.values ?? [];
            this.maps.replaceChildren(...maps.map((map, k) => decouple.heat(map, now.colours[k], now.entities[k], decoupleSay(", step {step}", {step: now.step}))));
            const loss = {name: decoupleSay("loss"), points: now.points.map((one) => [one.step, one.loss])};
            const iou = {name: "IoU", dash: decouple.dash(1), points: now.points.map((one) => [one.step, one.iou])};
            const last = now.points.at(-1);
            const label = last
                ? decoupleSay("Loss and IoU over the steps; at step {step} loss {loss}", {step: last.step, loss: last.loss?.toPrecision(3) ?? "–"})
                : decoupleSay("No step yet");
            this.curve.replaceChildren(
                decouple.plot([loss, iou], {
                    x: decoupleSay("step (from 0), of {total}", {total: now.total}), y: decoupleSay("loss, IoU"), label, within: this.curve,
                }), decouple.legend([loss, iou]));
        }
    }

    onUiLoaded(() => decouple.TABS.forEach((tab) => new Live(tab)));
})();
