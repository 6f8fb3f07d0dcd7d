// After a Compare the gallery shows its first pair: the host opens it at its own grid, in which nothing says what is
// plain and what is decoupled.
(function() {
    const LOOK = 300, LATE = 10000; // ms between two looks, and after which the pictures of a job that has ended won't come

    const told = (tab) => decouple.find(tab, "status", ".decouple-run")?.dataset.told;

    function showPair(tab, before) {
        let idle = 0;
        const timer = setInterval(() => {
            idle = decouple.busy(tab) ? 0 : idle + LOOK;
            if (idle > LATE) clearInterval(timer);
            if (!idle || told(tab) === before) return;
            const made = JSON.parse(gradioApp().querySelector(`#generation_info_${tab} textarea`).value || "{}");
            const gallery = gradioApp().querySelector(`#${tab}_gallery`);
            let shown = gallery.querySelectorAll(".thumbnail-item.thumbnail-small");
            if (!shown.length) shown = gallery.querySelectorAll(".thumbnail-item");
            if (shown.length < made.infotexts?.length) return;
            clearInterval(timer);
            shown[shown.length - made.all_seeds.length / 2]?.click(); // the pairs stand behind all others
        }, LOOK);
    }

    onUiLoaded(() => decouple.TABS.forEach((tab) => decouple.find(tab, "compare_button")?.addEventListener("click", () => {
        if (!decouple.busy(tab)) showPair(tab, told(tab));
    })));
})();
