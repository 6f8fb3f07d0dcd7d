// "Compare" ticks the hidden control for one job.
(function() {
    async function compare(tab, button, note) {
        if (button.disabled) return;
        note.textContent = decouple.busy(tab) ? decoupleSay("A picture is being drawn; press again when it is done.") : "";
        if (decouple.busy(tab)) return;
        button.disabled = true;
        try {
            await decouple.generateWith(tab, "compare", true);
        } finally {
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
