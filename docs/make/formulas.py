r"""LaTeX of every equation in the headers of the models, with the letters of the papers.

    FORMULAS["vae"]["ELBO(x)"]

is the formula of the row ``ELBO(x)`` in the docstring of zoo/vae.py, without dollar signs. ``equations.py`` reads these
rows. The formulas use commands that MathJax has, and no ``|``, because they must fit into cells of Markdown tables.
"""

FORMULAS: dict[str, dict[str, str]] = {
    "vae": {
        "p(z)": r"p(\mathbf{z}) = \mathcal{N}(\mathbf{0}, \mathbf{I}), \quad \mathrm{Bernoulli}(\tfrac{1}{2})^D,"
        r" \quad \text{or uniform over } \{1, \dots, K\}^D",
        "p(x | z)": r"p_\theta(\mathbf{x} \mid \mathbf{z}) = \prod_d p(x_d \mid \mathrm{decoder}_d(\mathbf{z})),"
        r" \quad p \text{ Bernoulli, Gaussian or discretised logistic}",
        "q(z | x)": r"q_\phi(\mathbf{z} \mid \mathbf{x}) = \prod_{d=1}^{D} q_\phi(z_d \mid \mathbf{x}),"
        r" \quad \text{of the family of } p(\mathbf{z})",
        "ELBO(x)": r"\mathrm{ELBO}(\mathbf{x}) = \mathbb{E}_{q_\phi(\mathbf{z} \mid \mathbf{x})}"
        r"\bigl[ \log p_\theta(\mathbf{x} \mid \mathbf{z}) \bigr]"
        r" - \beta \, D_{\mathrm{KL}}\bigl( q_\phi(\mathbf{z} \mid \mathbf{x}) \,\Vert\, p(\mathbf{z}) \bigr)"
        r" \;\le\; \log p_\theta(\mathbf{x}) \text{ at } \beta = 1",
        "L_k(x)": r"\mathcal{L}_k(\mathbf{x}) = \mathbb{E}_{\mathbf{z}_1, \dots, \mathbf{z}_k \sim"
        r" q_\phi(\mathbf{z} \mid \mathbf{x})} \Bigl[ \log \frac{1}{k} \sum_{i=1}^{k} w_i \Bigr],"
        r" \quad w_i = \frac{p_\theta(\mathbf{x}, \mathbf{z}_i)}{q_\phi(\mathbf{z}_i \mid \mathbf{x})},"
        r" \quad \mathrm{ELBO} \le \mathcal{L}_k \le \log p_\theta(\mathbf{x})",
        "wake": r"\text{draw } \mathbf{z} \sim q_\phi(\mathbf{z} \mid \mathbf{x}),"
        r" \quad \text{increase } \log p_\theta(\mathbf{x} \mid \mathbf{z}) \text{ in } \theta",
        "sleep": r"\text{draw } \mathbf{z} \sim p(\mathbf{z}),\ \mathbf{x} \sim p_\theta(\mathbf{x} \mid \mathbf{z}),"
        r" \quad \text{increase } \log q_\phi(\mathbf{z} \mid \mathbf{x}) \text{ in } \phi",
    },
    "cvae": {
        "p(z | y)": r"p_\theta(\mathbf{z} \mid y) = \mathcal{N}(\mathbf{0}, \mathbf{I})"
        r" \quad \text{or} \quad \mathcal{N}\bigl( \boldsymbol{\mu}_p(y),"
        r" \operatorname{diag} \exp(\mathrm{logvar}_p(y)) \bigr)",
        "p(x | z, y)": r"p_\theta(\mathbf{x} \mid \mathbf{z}, y) = \prod_d p(x_d \mid"
        r" \mathrm{decoder}_d(\mathbf{z}, y)),"
        r" \quad p \text{ Bernoulli, Gaussian or discretised logistic}",
        "q(z | x, y)": r"q_\phi(\mathbf{z} \mid \mathbf{x}, y) = \mathcal{N}\bigl( \boldsymbol{\mu}(\mathbf{x}, y),"
        r" \operatorname{diag} \exp(\mathrm{logvar}(\mathbf{x}, y)) \bigr)",
        "L(x, y)": r"\mathcal{L}(\mathbf{x}, y) = \mathbb{E}_{q_\phi(\mathbf{z} \mid \mathbf{x}, y)}"
        r"\bigl[ \log p_\theta(\mathbf{x} \mid \mathbf{z}, y) \bigr]"
        r" - \mathrm{KL}\bigl( q_\phi(\mathbf{z} \mid \mathbf{x}, y) \,\Vert\, p_\theta(\mathbf{z} \mid y) \bigr)"
        r" \;\le\; \log p_\theta(\mathbf{x} \mid y)",
    },
    "vade": {
        "p(c) p(z | c)": r"p(c) \, p(\mathbf{z} \mid c) = \pi_c \, \mathcal{N}\bigl( \mathbf{z} \mid"
        r" \boldsymbol{\mu}_c, \operatorname{diag} \exp(\mathrm{logvar}_c) \bigr), \quad c \in \{0, \dots, K - 1\}",
        "p(x | z)": r"p(\mathbf{x} \mid \mathbf{z}) = \prod_d p(x_d \mid \mathrm{decoder}_d(\mathbf{z})),"
        r" \quad p \text{ Bernoulli, Gaussian or discretised logistic}",
        "q(z | x)": r"q(\mathbf{z} \mid \mathbf{x}) = \mathcal{N}\bigl( \mathbf{z} \mid \boldsymbol{\mu}(\mathbf{x}),"
        r" \operatorname{diag} \exp(\mathrm{logvar}(\mathbf{x})) \bigr)",
        "p(c | z)": r"p(c \mid \mathbf{z}) = \frac{\pi_c \, \mathcal{N}(\mathbf{z} \mid c)}"
        r"{\sum_{k} \pi_k \, \mathcal{N}(\mathbf{z} \mid k)}",
        "five terms": r"\mathbb{E}_{q} \Bigl[ \log p(\mathbf{x} \mid \mathbf{z}) + \sum_c \gamma_c"
        r" \bigl( \log p(\mathbf{z} \mid c) + \log \pi_c - \log \gamma_c \bigr)"
        r" - \log q(\mathbf{z} \mid \mathbf{x}) \Bigr]",
        "marginal": r"\mathbb{E}_{q} \Bigl[ \log p(\mathbf{x} \mid \mathbf{z}) + \log p(\mathbf{z})"
        r" - \log q(\mathbf{z} \mid \mathbf{x}) - D_{\mathrm{KL}}\bigl( \gamma \,\Vert\, p(c \mid \mathbf{z}) \bigr)"
        r" \Bigr], \quad p(\mathbf{z}) = \sum_c \pi_c \, \mathcal{N}(\mathbf{z} \mid c)",
        "mean field": r"\mathbb{E}_{q} \bigl[ \log p(\mathbf{x} \mid \mathbf{z}) \bigr] - \sum_c \gamma_c \,"
        r" D_{\mathrm{KL}}\bigl( q(\mathbf{z} \mid \mathbf{x}) \,\Vert\, p(\mathbf{z} \mid c) \bigr)"
        r" - D_{\mathrm{KL}}( \gamma \,\Vert\, \pi )",
    },
    "gan": {
        "V(G, D)": r"V(G, D) = \mathbb{E}_{\boldsymbol{x} \sim p_{\mathrm{data}}} \bigl[ \log D(\boldsymbol{x}) \bigr]"
        r" + \mathbb{E}_{\boldsymbol{z} \sim p_{\boldsymbol{z}}}"
        r" \bigl[ \log ( 1 - D(G(\boldsymbol{z})) ) \bigr]",
        "D*(x)": r"D^*_G(\boldsymbol{x}) = \operatorname*{arg\,max}_D \, V(G, D) ="
        r" \frac{p_{\mathrm{data}}(\boldsymbol{x})}{p_{\mathrm{data}}(\boldsymbol{x}) + p_g(\boldsymbol{x})}",
        "C(G)": r"C(G) = \max_D V(G, D) = -\log 4 + 2 \cdot \mathrm{JSD}( p_{\mathrm{data}} \,\Vert\, p_g )",
        "non_saturating": r"-\log D(G(\boldsymbol{z})) = \operatorname{softplus}(-l),"
        r" \quad l = \log D(G(\boldsymbol{z})) - \log ( 1 - D(G(\boldsymbol{z})) )",
        "minimax": r"\log ( 1 - D(G(\boldsymbol{z})) ) = -\operatorname{softplus}(l)",
        "kl": r"-\bigl[ \log D(G(\boldsymbol{z})) - \log ( 1 - D(G(\boldsymbol{z})) ) \bigr] = -l",
    },
    "wgan": {
        "W(p, q)": r"W(p, q) = \frac{1}{K} \sup_{\lVert f \rVert_L \le K}"
        r" \Bigl( \mathbb{E}_{x \sim p} \bigl[ f(x) \bigr] - \mathbb{E}_{x \sim q} \bigl[ f(x) \bigr] \Bigr)",
        "clip": r"w \leftarrow \operatorname{clip}(w, -c, c) \quad \text{for every weight } w \text{ of } f,"
        r" \text{ after each step}",
        "penalty": r"\mathbb{E}_{\hat{x}} \Bigl[ \bigl( \lVert \nabla_{\hat{x}} f(\hat{x}) \rVert_2 - 1"
        r" \bigr)^2 \Bigr]",
        "x_hat": r"\hat{x} = u \, x + (1 - u) \, G(z), \quad u \sim U[0, 1]",
        "critic_loss": r"\mathbb{E}_{z} \bigl[ f(G(z)) \bigr] - \mathbb{E}_{x} \bigl[ f(x) \bigr] + \lambda \,"
        r" \mathbb{E}_{\hat{x}} \Bigl[ \bigl( \lVert \nabla_{\hat{x}} f(\hat{x}) \rVert_2 - 1 \bigr)^2 \Bigr]",
        "generator_loss": r"-\mathbb{E}_{z} \bigl[ f(G(z)) \bigr]",
    },
    "infogan": {
        "L_I(G, Q)": r"L_I(G, Q) = H(c) + \mathbb{E}_{c \sim P(c),\, x \sim G(z, c)} \bigl[ \log Q(c \mid x) \bigr]"
        r" \;\le\; I(c; G(z, c))",
        "V_InfoGAN": r"\min_{G, Q} \max_D V_{\mathrm{InfoGAN}}(D, G, Q) = V(D, G) - \lambda L_I(G, Q)",
        "p(c)": r"P(c) = \frac{1}{K} \, 2^{-D}, \quad \text{category uniform on } \{0, \dots, K - 1\},"
        r" \ D \text{ numbers uniform in } [-1, 1]",
        "Q(c | x)": r"Q(c \mid x) = \operatorname{softmax}(\mathrm{logits}(x)) \text{ for the category},"
        r" \quad \mathcal{N}\bigl( \mu(x), \operatorname{diag} \sigma^2(x) \bigr) \text{ for the numbers}",
        "L_cat": r"L_{\mathrm{cat}} = \log K + \mathbb{E} \bigl[ \log Q(c \mid x) \bigr] \;\le\; H(c) = \log K",
        "L_num": r"L_{\mathrm{num}} = D \log 2 + \mathbb{E} \bigl[ \log \mathcal{N}\bigl( c \mid \mu(x),"
        r" \operatorname{diag} \sigma^2(x) \bigr) \bigr]",
    },
    "ddpm": {
        "q(x_t | x_0)": r"q(\mathbf{x}_t \mid \mathbf{x}_0) = \mathcal{N}\bigl( \mathbf{x}_t;"
        r" \sqrt{\bar\alpha_t} \, \mathbf{x}_0, (1 - \bar\alpha_t) \mathbf{I} \bigr)",
        "L_simple": r"L_{\mathrm{simple}}(\theta) = \mathbb{E}_{t, \mathbf{x}_0, \boldsymbol\epsilon}"
        r" \bigl\lVert \boldsymbol\epsilon - \boldsymbol\epsilon_\theta(\mathbf{x}_t, t) \bigr\rVert^2,"
        r" \quad \mathbf{x}_t = \sqrt{\bar\alpha_t} \, \mathbf{x}_0 + \sqrt{1 - \bar\alpha_t} \, \boldsymbol\epsilon",
        "L_v": r"L_{\mathbf{v}}(\theta) = \mathbb{E}_{t, \mathbf{x}_0, \boldsymbol\epsilon}"
        r" \bigl\lVert \mathbf{v} - \mathbf{v}_\theta(\mathbf{x}_t, t) \bigr\rVert^2,"
        r" \quad \mathbf{v} = \sqrt{\bar\alpha_t} \, \boldsymbol\epsilon - \sqrt{1 - \bar\alpha_t} \, \mathbf{x}_0",
        "x0_hat": r"\hat{\mathbf{x}}_0 = \frac{\mathbf{x}_t - \sqrt{1 - \bar\alpha_t} \,"
        r" \boldsymbol\epsilon_\theta(\mathbf{x}_t, t)}{\sqrt{\bar\alpha_t}}"
        r" = \sqrt{\bar\alpha_t} \, \mathbf{x}_t - \sqrt{1 - \bar\alpha_t} \, \mathbf{v}_\theta(\mathbf{x}_t, t)",
        "x_{t-1}": r"\mathbf{x}_{t-1} = \tilde{\boldsymbol\mu}_t(\mathbf{x}_t, \hat{\mathbf{x}}_0) + \sigma_t"
        r" \mathbf{z},"
        r" \quad \tilde{\boldsymbol\mu}_t \text{ the mean of } q(\mathbf{x}_{t-1} \mid \mathbf{x}_t,"
        r" \hat{\mathbf{x}}_0), \quad \mathbf{z} \sim \mathcal{N}(\mathbf{0}, \mathbf{I}),"
        r" \text{ but } \mathbf{z} = \mathbf{0} \text{ in the last step}",
        "score": r"-\frac{\boldsymbol\epsilon_\theta(\mathbf{x}_t, t)}{\sqrt{1 - \bar\alpha_t}}"
        r" \approx \nabla_{\mathbf{x}_t} \log q(\mathbf{x}_t)",
        "-log p(x_0)": r"-\log p_\theta(\mathbf{x}_0) \le \mathbb{E}_q \Bigl[ L_T + \sum_{t \gt 1} L_{t-1}"
        r" + L_0 \Bigr]",
    },
    "score": {
        "J(s)": r"J(\mathbf{s}) = \tfrac{1}{2} \mathbb{E}_{p} \bigl\lVert \mathbf{s}(\mathbf{x})"
        r" - \nabla_{\mathbf{x}} \log p(\mathbf{x}) \bigr\rVert_2^2 = \mathbb{E}_{p} \Bigl[ \operatorname{tr}"
        r" ( \nabla_{\mathbf{x}} \mathbf{s}(\mathbf{x}) ) + \tfrac{1}{2} \lVert \mathbf{s}(\mathbf{x})"
        r" \rVert_2^2 \Bigr]"
        r" + \text{const}",
        "J_sliced": r"J_{\text{sliced}}(\mathbf{s}) = \mathbb{E}_{p} \mathbb{E}_{\mathbf{v}} \Bigl[ \mathbf{v}^{\top}"
        r" \nabla_{\mathbf{x}} \mathbf{s}(\mathbf{x}) \mathbf{v} + \tfrac{1}{2}"
        r" ( \mathbf{v}^{\top} \mathbf{s}(\mathbf{x}) )^2 \Bigr] + \text{const}",
        "J_reduced": r"J_{\text{reduced}}(\mathbf{s}) = \mathbb{E}_{p} \mathbb{E}_{\mathbf{v}} \bigl[ \mathbf{v}^{\top}"
        r" \nabla_{\mathbf{x}} \mathbf{s}(\mathbf{x}) \mathbf{v} \bigr] + \tfrac{1}{2} \mathbb{E}_{p}"
        r" \lVert \mathbf{s}(\mathbf{x}) \rVert_2^2 + \text{const}",
        "J_sigma": r"J_\sigma(\mathbf{s}) = \tfrac{1}{2} \mathbb{E}_{\mathbf{x}} \mathbb{E}_{\boldsymbol\epsilon}"
        r" \Bigl\lVert \mathbf{s}(\mathbf{x} + \sigma \boldsymbol\epsilon, \sigma)"
        r" + \frac{\boldsymbol\epsilon}{\sigma} \Bigr\rVert_2^2 + \text{const}",
        "L(s)": r"\mathcal{L}(\mathbf{s}) = \frac{1}{L} \sum_{i=1}^{L} w(\sigma_i) \, J_{\sigma_i}(\mathbf{s})",
        "x'": r"\mathbf{x}' = \mathbf{x} + \frac{e}{2} \, \mathbf{s}(\mathbf{x}) + \sqrt{e} \, \mathbf{z},"
        r" \quad \mathbf{z} \sim \mathcal{N}(\mathbf{0}, \mathbf{I})",
    },
    "rbm": {
        "E(v, h)": r"E(\mathbf{v}, \mathbf{h}) = -\mathbf{b}^{\top} \mathbf{v} - \mathbf{c}^{\top} \mathbf{h}"
        r" - \mathbf{v}^{\top} W \mathbf{h}, \quad p(\mathbf{v}, \mathbf{h}) ="
        r" \frac{\exp(-E(\mathbf{v}, \mathbf{h}))}{Z}",
        "F(v)": r"F(\mathbf{v}) = -\log \sum_{\mathbf{h}} \exp(-E(\mathbf{v}, \mathbf{h}))"
        r" = -\mathbf{b}^{\top} \mathbf{v} - \sum_j \operatorname{softplus}\bigl( c_j + (\mathbf{v}^{\top} W)_j \bigr)",
        "p(h_j=1 | v)": r"p(h_j = 1 \mid \mathbf{v}) = \operatorname{sigmoid}\bigl( c_j + (\mathbf{v}^{\top}"
        r" W)_j \bigr),"
        r" \quad p(v_i = 1 \mid \mathbf{h}) = \operatorname{sigmoid}\bigl( b_i + (W \mathbf{h})_i \bigr)",
        "log p(v)": r"\log p(\mathbf{v}) = -F(\mathbf{v}) - \log Z, \quad \nabla \log p(\mathbf{v}) = -\nabla"
        r" F(\mathbf{v})"
        r" + \mathbb{E}_{\mathbf{v}' \sim p} \bigl[ \nabla F(\mathbf{v}') \bigr]",
        "E_gauss(v, h)": r"E(\mathbf{v}, \mathbf{h}) = \sum_i \frac{(v_i - b_i)^2}{2 \sigma_i^2}"
        r" - \mathbf{c}^{\top} \mathbf{h} - \sum_{ij} \frac{v_i W_{ij} h_j}{\sigma_i^2}",
        "cd": r"\mathbf{v}' \text{: a state after } k \text{ Gibbs steps from the data}",
        "pcd": r"\mathbf{v}' \text{: a state of a persistent chain after } k \text{ more Gibbs steps}",
        "exact": r"\log Z \text{ from a sum over the } 2^n \text{ states of the smaller layer},"
        r" \quad n \le 20, \quad \text{no } \mathbf{v}'",
    },
    "skipgram": {
        "p(w | c)": r"p(w \mid c) = \frac{\exp(s(w, c))}{Z_c}, \quad s(w, c) = u_w^{\top} v_c + b_w",
        "nce": r"-\log \sigma\bigl( s - \log (k \, q(w)) \bigr)"
        r" - \sum_{i=1}^{k} \log \sigma\bigl( \log (k \, q(w_i)) - s_i \bigr), \quad w_i \sim q",
        "negative_sampling": r"-\log \sigma\bigl( u_w^{\top} v_c \bigr)"
        r" - \sum_{i=1}^{k} \log \sigma\bigl( -u_{w_i}^{\top} v_c \bigr), \quad w_i \sim q",
        "importance_sampling": r"-\log p(w \mid c) \approx -s + \log \frac{1}{k} \sum_{i=1}^{k}"
        r" \frac{\exp(s_i)}{q(w_i)}, \quad w_i \sim q",
        "softmax": r"-\log p(w \mid c) = -s + \log Z_c, \quad Z_c = \sum_{w'} \exp(s(w', c))",
    },
}
