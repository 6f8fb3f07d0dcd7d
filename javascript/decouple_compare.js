// "Compare" ticks the hidden control for one job: it is ticked before the host's own button reads the controls, and
// taken back after, however that job ends.
(function() {
    const READ = 300; // ms until gradio has taken a tick over, or has read it

    const wait = (time) => new Promise((resolve) => setTimeout(resolve, time));

    function tick(tab, value) {
        const box = decouple.find(tab, "compare", "input");
        if (box.checked !== value) box.click();
        return wait(READ);
    }

    async function compare(tab, button, note) {
        if (button.disabled) return;
        note.textContent = decouple.busy(tab) ? decoupleSay("A picture is being drawn; press again when it is done.") : "";
        if (decouple.busy(tab)) return;
        button.disabled = true;
        try {
            await tick(tab, true);
            gradioApp().querySelector(`#${tab}_generate`).click();
            await wait(READ);
        } finally {
            await tick(tab, false);
            button.disabled = false;
        }
    }

    onUiLoaded(function() {
        for (const tab of decouple.TABS) {
            const button = decouple.find(tab, "compare_button");
            const note = decouple.part("p", "decouple-says", "", {role: "status"});
            button?.after(note);
            button?.addEventListener("click", () => compare(tab, button, note));
        }
    });
})();
